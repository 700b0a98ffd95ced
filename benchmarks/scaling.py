"""How time and memory grow: with context, depth, data, digits, new tokens and batch; each law fitted, and held or not.

    python -m benchmarks.scaling --peers FOLDER             FOLDER holds a checkout named minGPT, a contrast
    python -m benchmarks.scaling --only context depth       some of the laws
    python -m benchmarks.scaling --tiny                     small sizes: does the script run?

context: training steps of 4,096 tokens in sequences of length T. Time per token is a + b T; at 1,024 tokens what grows
must be at most 0.4 of what doesn't. The model is a sixth of GPT-2, two of its layers and a sixth of its vocabulary, so
that attention has the share of the work that it has there. When T doubles, memory may double, but not more; of equal
numbers of tokens, and of sequences. minGPT keeps T times T numbers for each head.
depth: time and memory of a step are straight lines over the number of layers: R² above 0.99.
data: windows of 1,024 tokens from files of 1 MB to 10 GB. The time from Python's start to the first batch, the time per
batch, and memory are at most 10 % apart. The files are sparse and mapped, and the same windows are drawn in every turn,
so that their pages are in memory: when they aren't, time is the disk's. The kernel is told not to read ahead, which
would fill the memory with pages that nobody asked for. Memory is what the process has allocated in the end, Python and
PyTorch included; pages of the file, which the kernel takes back when it needs room, don't count.
digits: a batch of the adder takes at most in proportion to the digits; its datamodule is made at once, however many
problems there are.
length: a token costs at 1,000 new ones at most 1.25 of what it costs at 100. The width is 512: every token reads all
weights, and beside those of a narrower model keys and values would be more than they are in GPT-2.
batch: 32 rows are generated at ten times the tokens a second of one; a larger batch never trains fewer tokens a second.

Every point has a process of its own, in which it has a turn in every round; the shortest of a point counts. All have
one thread, because two would wait for each other wherever something else runs, and for a small model the most. Training
is in bfloat16 where the library chooses it, generation in float32.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Table, Worker, allocated, load, machine, parser, peak_rss, peer, seconds, serve
from mingpt_lightning import GPT
from mingpt_lightning.device import fast_dtype, keep_memory
from mingpt_lightning.inference import prepare
from mingpt_lightning.loss import cross_entropy_sum
from mingpt_lightning.optim import parameter_groups

Settings = dict[str, Any]
Turn = Callable[[], dict[str, Any]]

SIXTH = {"n_layer": 2, "n_head": 12, "n_embd": 768, "vocab_size": 8376}  # of GPT-2
WIDE = {"n_layer": 2, "n_head": 8, "n_embd": 512, "vocab_size": 512}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 512}
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 64}
SLACK = 1.1  # what still counts as the same


# What workers do


def training(settings: Settings) -> Turn:
    """Training steps of a small GPT: the seconds of the shortest."""
    n_embd, T, rows = settings["n_embd"], settings["T"], settings["rows"]
    narrow = fast_dtype(torch.device("cpu"), n_embd) == torch.bfloat16
    if "mingpt" in settings:
        gpt: Any = mingpt(Path(settings["mingpt"]), settings)
        optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, fused=True)
    else:
        keep_memory()
        gpt = GPT(block_size=T, **model_sizes(settings))
        optimizer = torch.optim.AdamW(parameter_groups(gpt), lr=1e-4, fused=True)
    tokens = torch.randint(settings["vocab_size"], (rows, T + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss() -> Tensor:
        if "mingpt" in settings:
            return gpt(inputs, targets)[1]
        return cross_entropy_sum(gpt, gpt.hidden(inputs), targets) / targets.numel()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: {"seconds": min(seconds(step) for _ in range(settings["steps"]))}


def model_sizes(settings: Settings) -> dict[str, Any]:
    return {name: settings[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}


def mingpt(file: Path, settings: Settings) -> Any:
    """minGPT's model without dropout."""
    sys.path.insert(0, str(file.parents[1]))
    model = load(file).GPT
    config = model.get_default_config()
    config.merge_from_dict({**model_sizes(settings), "block_size": settings["T"], "model_type": None})
    config.merge_from_dict({"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        return model(config)


def windows(settings: Settings) -> Turn:
    """The loader of a text: the same batches in every turn."""
    from mingpt_lightning.datamodule import BatchLoader, WindowDataset
    from projects.text.datamodule import map_tokens

    tokens = map_tokens(Path(settings["file"]), np.dtype(np.uint16))
    dataset = WindowDataset(tokens, block_size=1024, stride=1)
    loader = BatchLoader(dataset, batch_size=16, shuffle_seed=0)

    def read(batches: int) -> None:
        loader.step = 0
        for _ in islice(loader, batches):
            pass

    def turn() -> dict[str, Any]:
        passes = [seconds(lambda: read(settings["batches"])) / settings["batches"] for _ in range(5)]
        return {"seconds": min(passes), "first": passes[0], "allocated": allocated()}

    read(1)
    return turn


def sums(settings: Settings) -> Turn:
    """The adder's batches of 256, for each number of digits."""
    from mingpt_lightning.datamodule import BatchLoader
    from projects.adder.datamodule import AdderDataModule

    def make_batches(loader: BatchLoader) -> None:
        loader.batches(0, loader.steps_at_once)  # at once, as training does

    def point(ndigit: int) -> dict[str, Any]:
        startup = min(seconds(lambda: AdderDataModule(ndigit, 256)) for _ in range(1000))
        loader = AdderDataModule(ndigit, 256).train_dataloader()
        passed = min(seconds(lambda: make_batches(loader)) for _ in range(20))
        return {"startup": startup, "seconds": passed / loader.steps_at_once}

    def memory(ndigit: int) -> dict[str, Any]:
        tracemalloc.start()
        datamodule = AdderDataModule(ndigit, 256)
        made = tracemalloc.get_traced_memory()[1]
        make_batches(datamodule.train_dataloader())
        batch = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {"startup bytes": made, "batch bytes": batch}

    return lambda: {"points": [{"digits": n, **point(n), **memory(n)} for n in settings["digits"]]}


def generation(settings: Settings) -> Turn:
    """Greedy generation: the seconds of each case, (rows, new tokens), after a prompt of 16."""
    torch.manual_seed(0)
    gpt = prepare(GPT(block_size=1024, **model_sizes(settings)), "float32")

    def case(rows: int, new: int) -> float:
        prompts = torch.randint(settings["vocab_size"], (rows, 16))
        return seconds(lambda: gpt.generate(prompts, new, temperature=0))

    return lambda: {"cases": [case(rows, new) for rows, new in settings["cases"]]}


WORK: dict[str, Callable[[Settings], Turn]] = {
    "training": training,
    "windows": windows,
    "sums": sums,
    "generation": generation,
}


def work(name: str, settings: Settings) -> None:
    """Be a worker."""
    torch.set_num_threads(1)
    if name == "training":  # what PyTorch loads at its first step is not part of the memory
        training({**TINY, "T": 4, "rows": 1, "steps": 1})()
    elif name in ("windows", "sums"):  # nor is Lightning
        import projects.adder.datamodule  # noqa: F401
    before = peak_rss()
    serve(WORK[name](settings), before=before)


# Measuring, and judging


def measure(name: str, points: Sequence[Settings], turns: int) -> list[list[dict[str, Any]]]:
    """The reports of every point, one of each turn; memory is counted from before the model was made."""
    workers: list[Worker] = []
    try:
        with ThreadPoolExecutor(2) as pool:
            arguments = [["benchmarks.scaling", name, "--settings", json.dumps(point)] for point in points]
            workers.extend(pool.map(lambda words: Worker(*words), arguments))
        rounds = [[worker() for worker in workers] for _ in range(turns)]
        for worker, reports in zip(workers, zip(*rounds, strict=True), strict=True):
            for report in reports:
                report["memory"] = report["rss"] - worker.ready["before"]
    finally:
        for worker in workers:
            worker.stop()
    return [list(reports) for reports in zip(*rounds, strict=True)]


def least(points: list[list[dict[str, Any]]], what: str) -> list[float]:
    """The smallest of each point."""
    return [min(report[what] for report in reports) for reports in points]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The line through some points: its value at 0, its slope, and R²."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (start + slope * np.asarray(x))
    return float(start), float(slope), float(1 - rest.var() / np.var(y))


def growth(values: Sequence[float]) -> float:
    """The largest factor from one value to the next."""
    return max(after / max(before, 1) for before, after in pairwise(values))


def spread(values: Sequence[float]) -> float:
    """The largest over the smallest."""
    return max(values) / min(values)


def judge(table: Table, law: str, value: float, bound: float, at_least: bool = False, **points: Any) -> None:
    """A row: does the law hold? The bound is an upper one, unless `at_least`."""
    held = value >= bound if at_least else value <= bound
    table.row(law, value, f"{'>=' if at_least else '<='} {bound:g}", "yes" if held else "no", **points)


# The laws


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


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=LAWS, default=list(LAWS), help="some of the laws")
    arguments.add_argument("--worker", choices=WORK, help=argparse.SUPPRESS)
    arguments.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        work(options.worker, options.settings)
        return
    print(machine())
    start = time.perf_counter()
    options.mingpt = peer(options.peers, "minGPT", "mingpt/model.py") if "context" in options.only else None
    table = Table(options, "scaling", "law", "measured", "bound", "held")
    for name in options.only:
        LAWS[name](options, table)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
