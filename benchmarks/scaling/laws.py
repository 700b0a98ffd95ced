"""The laws: what grows with what, measured and judged. Each function adds rows to the table."""

import argparse
import json
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import Table, Worker, seconds
from benchmarks.scaling.measure import growth, judge, least, line, measure, spread
from benchmarks.scaling.workers import TINY, Settings

SIXTH = {"n_layer": 2, "n_head": 12, "n_embd": 768, "vocab_size": 8376}  # of GPT-2
WIDE = {"n_layer": 2, "n_head": 8, "n_embd": 512, "vocab_size": 512}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 512}
SLACK = 1.1  # what counts as equal


def context(options: argparse.Namespace, table: Table) -> None:
    tokens, lengths = (4096, [256, 512]) if options.tiny else (4096, [128, 256, 512, 1024, 2048])
    rows = tokens // lengths[-1]  # of the longest; as many of each length in the second measurement
    sizes = {**(TINY if options.tiny else SIXTH), "steps": 2 if options.tiny else 1}
    contestants: dict[str, Settings] = {"ours": sizes}
    if options.mingpt:
        contestants["minGPT"] = {**sizes, "mingpt": str(options.mingpt)}
    for name, settings in contestants.items():
        turns = options.rounds if name == "ours" else min(2, options.rounds)
        points = measure("training", [{**settings, "rows": tokens // T, "T": T} for T in lengths], turns)
        times = [value / tokens for value in least(points, "seconds")]
        start, slope, _ = line(lengths, times)
        more: dict[str, Any] = {"T": lengths, "seconds per token": times, "a": start, "b": slope}
        judge(table, f"{name}: time per token over context, b * 1024 / a", slope * 1024 / start, 0.4, **more)
        memory = least(points, "memory")
        judge(table, f"{name}: memory, T doubled at the same tokens", growth(memory), 2.1, T=lengths, bytes=memory)
        shorter = measure("training", [{**settings, "rows": rows, "T": T} for T in lengths[:-1]], 1)
        memory = [*least(shorter, "memory"), memory[-1]]
        judge(table, f"{name}: memory, T doubled at the same rows", growth(memory), 2.1, T=lengths, bytes=memory)


def depth(options: argparse.Namespace, table: Table) -> None:
    layers = [1, 2] if options.tiny else [1, 2, 4, 6, 8, 10, 12]
    sizes = {**TINY, "T": 128, "rows": 8, "steps": 5} if options.tiny else {**SMALL, "T": 128, "rows": 8, "steps": 5}
    points = measure("training", [{**sizes, "n_layer": n} for n in layers], options.rounds)
    for what, name in (("seconds", "time"), ("memory", "memory")):
        values = least(points, what)
        start, slope, r2 = line(layers, values)
        more: dict[str, Any] = {"n_layer": layers, what: values, "a": start, "b": slope}
        judge(table, f"{name} of a step over depth, R² of a line", r2, 0.99, at_least=True, **more)


def data(options: argparse.Namespace, table: Table) -> None:
    sizes = [10**6] if options.tiny else [10**6, 10**8, 10**10]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{size}.bin" for size in sizes]
        for file, size in zip(files, sizes, strict=True):
            with file.open("wb") as stream:
                stream.truncate(size)
        points = [{"file": str(file), "batches": 64} for file in files]
        startups = [[seconds(partial(first_batch, point)) for point in points] for _ in range(options.rounds)]
        reports = measure("windows", points, 5 * options.rounds)
    startup = [min(rounds) for rounds in zip(*startups, strict=True)]
    judge(table, "start-up over data, largest / smallest", spread(startup), SLACK, bytes=sizes, seconds=startup)
    each, firsts = least(reports, "seconds"), [rounds[0]["first"] for rounds in reports]
    more: dict[str, Any] = {"bytes": sizes, "seconds": each, "before the pages are in memory": firsts}
    judge(table, "time per batch over data, largest / smallest", spread(each), SLACK, **more)
    memory = least(reports, "allocated")
    judge(table, "memory over data, largest / smallest", spread(memory), SLACK, bytes=sizes, memory=memory)


def first_batch(point: Settings) -> None:
    """Start Python, and read a first batch of windows."""
    Worker("benchmarks.scaling", "windows", "--settings", json.dumps(point)).stop()


def digits(options: argparse.Namespace, table: Table) -> None:
    numbers = [1, 2, 18] if options.tiny else [*range(1, 10), 18]
    reports = measure("sums", [{"digits": numbers}], options.rounds)[0]
    points = list(zip(*(report["points"] for report in reports), strict=True))  # of each number, the rounds
    for what, name, grows in (
        ("startup", "seconds to make a datamodule", False),
        ("startup bytes", "memory of a datamodule", False),
        ("seconds", "seconds per batch", True),
        ("batch bytes", "memory of the first batches", True),
    ):
        values = least([list(rounds) for rounds in points], what)
        more: dict[str, Any] = {"digits": numbers, what: values}
        if grows:
            worst = max(value / n / values[0] for n, value in zip(numbers[1:], values[1:], strict=True))
            judge(table, f"adder: {name}, each digit's share / that of one digit", worst, 1.0, **more)
        else:
            judge(table, f"adder: {name} over digits, largest / smallest", spread(values), SLACK, **more)


def length(options: argparse.Namespace, table: Table) -> None:
    new = [10, 100] if options.tiny else [100, 1000]
    times = generation_times(options, WIDE, [(1, n) for n in new])
    each = [value / n for value, n in zip(times, new, strict=True)]
    judge(table, f"seconds per new token at {new[1]} / at {new[0]}", each[1] / each[0], 1.25, new=new, seconds=each)


def generation_times(options: argparse.Namespace, model: Settings, cases: list[tuple[int, int]]) -> list[float]:
    """The seconds of each (rows, new tokens)."""
    sizes = {**(TINY if options.tiny else model), "cases": cases}
    reports = measure("generation", [sizes], options.rounds)[0]
    return [min(rounds) for rounds in zip(*(report["cases"] for report in reports), strict=True)]


def batch(options: argparse.Namespace, table: Table) -> None:
    rows, new = ([1, 32], 8) if options.tiny else ([1, 8, 32], 100)
    times = generation_times(options, SMALL, [(n, new) for n in rows])
    speeds = [n * new / value for n, value in zip(rows, times, strict=True)]
    more: dict[str, Any] = {"rows": rows, "tokens per second": speeds}
    judge(table, "tokens/s of generation, 32 rows / one", speeds[-1] / speeds[0], 10, at_least=True, **more)
    sizes = {**TINY, "T": 128, "steps": 5} if options.tiny else {**SMALL, "T": 128, "steps": 5}
    rows = [1, 4] if options.tiny else [1, 2, 4, 8, 16]
    points = measure("training", [{**sizes, "rows": n} for n in rows], options.rounds)
    speeds = [n * sizes["T"] / value for n, value in zip(rows, least(points, "seconds"), strict=True)]
    gain = min(after / before for before, after in pairwise(speeds))
    more = {"rows": rows, "tokens per second": speeds}
    judge(table, "tokens/s of training, batch doubled, least gain", gain, 0.95, at_least=True, **more)


LAWS = {law.__name__: law for law in (context, depth, data, digits, length, batch)}
