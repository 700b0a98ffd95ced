"""Throughput of data loading: tokens per second of a loader whose consumer only iterates.

    python -m benchmarks.data --peers FOLDER        FOLDER holds a checkout named minGPT

The adder: ours beside minGPT's dataset in the DataLoader that its Trainer makes, without workers and with its four;
pinning, which is for GPUs, is left out. Characters, and token files of 1 MB to 10 GB: ours beside nanoGPT's get_batch.
That is part of a script which trains when it is imported, so it is rewritten here: the file is mapped again for every
batch, and each row of the inputs and of the targets is sliced, converted to int64 and stacked.

Every contestant and size has a process of its own, and all take turns. A turn lasts a second, or one batch if that
takes longer, after some warm-up batches. The files are sparse, one for each contestant: they occupy no disk space and
are never read from disk, but none of their pages is in memory at first. The first access to a page makes the kernel
fill it and its neighbours, up to the disk's read_ahead_kb: a small file is soon in memory, a large one pays for nearly
every window. The table gives the growth of peak memory after the imports, and what the process has allocated in the
end; the rest are pages of the file, which the kernel reclaims when needed. Set TMPDIR to put the files elsewhere, but
not in a tmpfs.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Table, Worker, allocated, machine, parser, peak_rss, ratio, serve
from benchmarks.peers import ADDER, find, load

Batch = Iterable[Tensor]
WARM_UP = 16  # batches before each turn: twice as many as four workers make ahead
CHARACTERS = 2**20  # about as many as tiny Shakespeare has
BLOCKS = [64, 1024]
ROWS = 12  # windows in a batch, nanoGPT's default
SIZES = {"1 MB": 10**6, "100 MB": 10**8, "1 GB": 10**9, "10 GB": 10**10}
OURS, NANOGPT = "ours", "nanoGPT"


def forever(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of endlessly many epochs."""
    while True:
        yield from batches


def our_sums() -> Iterator[Batch]:
    from projects.adder.datamodule import AdderDataModule

    return forever(AdderDataModule(ndigit=2, batch_size=64).train_dataloader())


def mingpt_sums(adder: Path, workers: int) -> Iterator[Batch]:
    dataset = load(adder.parents[3], "minGPT", ADDER).AdditionDataset
    data = dataset(dataset.get_default_config(), split="train")
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=int(1e10))
    return iter(torch.utils.data.DataLoader(data, 64, shuffle=False, sampler=sampler, num_workers=workers))


def our_windows(file: Path, block: int) -> Iterator[Batch]:
    from mingpt_lightning.datamodule import BatchLoader, WindowDataset
    from projects.text.datamodule import map_tokens

    tokens = map_tokens(file, np.dtype(np.uint16))
    return forever(BatchLoader(WindowDataset(tokens, block, stride=1), ROWS, shuffle_seed=0))


def nanogpt_windows(file: Path, block: int) -> Iterator[Batch]:
    def stacked(rows: Iterable[np.ndarray]) -> Tensor:
        return torch.stack([torch.from_numpy(row.astype(np.int64)) for row in rows])

    while True:
        tokens = np.memmap(file, np.uint16, "r")
        starts = torch.randint(len(tokens) - block, (ROWS,))
        inputs = (tokens[start : start + block] for start in starts)
        targets = (tokens[start + 1 : start + 1 + block] for start in starts)
        yield stacked(inputs), stacked(targets)


def contestant(name: str, file: Path | None, number: int) -> Iterator[Batch]:
    """The batches of a contestant. `number`: workers of minGPT, block size of windows."""
    if file is None:
        return our_sums()
    if name == OURS:
        return our_windows(file, number)
    return nanogpt_windows(file, number) if name == NANOGPT else mingpt_sums(file, number)


def turn(batches: Iterator[Batch], least: float) -> dict[str, Any]:
    """Take batches for at least so many seconds."""
    for _ in range(WARM_UP):
        next(batches)
    tokens, passed, start = 0, 0.0, time.perf_counter()
    while passed < least:
        inputs, _ = next(batches)
        tokens += inputs.numel()
        passed = time.perf_counter() - start
    return {"tokens": tokens, "seconds": passed, "allocated": allocated()}


def work(options: Namespace) -> None:
    """Run as a contestant."""
    import mingpt_lightning.datamodule  # noqa: F401  not part of the first batch

    before, allocated_before = peak_rss(), allocated()
    start = time.perf_counter()
    batches = contestant(options.worker, options.file, options.number)
    next(batches)
    first = time.perf_counter() - start
    least = 0.05 if options.tiny else 1.0
    serve(lambda: turn(batches, least), first=first, before=before, allocated_before=allocated_before)


class Contest:
    """Some contestants and the reports of their turns; the first is the one that others are compared with."""

    def __init__(self, options: Namespace, contestants: dict[str, tuple[str, Path | None, int]]):
        tiny = ["--tiny"] if options.tiny else []
        self.workers: dict[str, Worker] = {}
        try:
            for label, (name, file, number) in contestants.items():
                arguments = [*tiny, "--number", str(number), *(["--file", str(file)] if file else [])]
                self.workers[label] = Worker("benchmarks.data", name, *arguments)
            turns = [{label: worker() for label, worker in self.workers.items()} for _ in range(options.rounds)]
        finally:
            for worker in self.workers.values():
                worker.stop()
        self.reports = {label: [reports[label] for reports in turns] for label in self.workers}

    def rate(self, label: str) -> float:
        """Tokens a second."""
        return 1 / median(self.times(label))

    def times(self, label: str) -> list[float]:
        """Seconds for a token, turn by turn."""
        return [report["seconds"] / report["tokens"] for report in self.reports[label]]

    def faster(self, label: str, other: str) -> str:
        """How many times as fast a contestant is as another."""
        return "" if label == other else ratio(self.times(label), self.times(other))

    def first(self, label: str) -> float:
        """Milliseconds to the first batch, the data opened."""
        return self.workers[label].ready["first"] * 1000

    def growth(self, label: str) -> tuple[float, float]:
        """MB: how far the peak of memory grew, and what is allocated now that was not before."""
        ready, last = self.workers[label].ready, self.reports[label][-1]
        return (last["rss"] - ready["before"]) / 1e6, (last["allocated"] - ready["allocated_before"]) / 1e6


def sums(options: Namespace) -> None:
    contestants: dict[str, tuple[str, Path | None, int]] = {OURS: (OURS, None, 0)}
    adder = find(options.peers, "minGPT", ADDER)
    if adder is not None:
        contestants |= {f"minGPT, {workers} workers": ("minGPT", adder, workers) for workers in (0, 4)}
    contest = Contest(options, contestants)
    table = Table(options, "data adder", "2 digits, batch 64", "tokens/s", "ours is faster")
    for label in contestants:
        table.row(label, contest.rate(label), contest.faster(OURS, label), turns=contest.times(label))


def characters(options: Namespace, folder: Path) -> None:
    file = folder / "characters.bin"
    np.random.default_rng(0).integers(65, size=CHARACTERS, dtype=np.uint16).tofile(file)
    blocks = BLOCKS[:1] if options.tiny else BLOCKS
    contest = Contest(options, {f"{name} {block}": (name, file, block) for block in blocks for name in (OURS, NANOGPT)})
    table = Table(options, "data characters", "block", f"batch {ROWS}", "tokens/s", "ours is faster")
    for block in blocks:
        for name in (OURS, NANOGPT):
            label = f"{name} {block}"
            against = contest.faster(f"{OURS} {block}", label)
            table.row(block, name, contest.rate(label), against, turns=contest.times(label))


def sizes(options: Namespace, folder: Path) -> None:
    block = BLOCKS[-1]
    found: list[str] = []
    contestants: dict[str, tuple[str, Path | None, int]] = {}
    for size in ["1 MB"] if options.tiny else SIZES:
        files = {name: folder / f"{name} {size}.bin" for name in (OURS, NANOGPT)}
        if all(sparse_file(file, SIZES[size]) for file in files.values()):
            found.append(size)
            contestants |= {f"{name} {size}": (name, file, block) for name, file in files.items()}
    if not found:
        return
    contest = Contest(options, contestants)
    title = f"block {block}, batch {ROWS}"
    columns = ["size", title, "tokens/s", "ours is faster", f"rate / that of {found[0]}", "first batch, ms"]
    table = Table(options, "data sizes", *columns, "peak memory grew, MB", "allocated, MB")
    for size in found:
        for name in (OURS, NANOGPT):
            label, smallest = f"{name} {size}", f"{name} {found[0]}"
            against, kept = contest.faster(f"{OURS} {size}", label), contest.faster(label, smallest)
            measured = contest.rate(label), against, kept, contest.first(label)
            table.row(size, name, *measured, *contest.growth(label), turns=contest.times(label))


def sparse_file(path: Path, size: int) -> bool:
    """Make a file of zeros that occupies no disk space; False, with a message, where that is impossible."""
    try:
        with path.open("wb") as file:
            file.truncate(size)
    except OSError as error:
        print(f"\n{path.name} is left out: no sparse file of that size here ({error.strerror})", flush=True)
        return False
    return True


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--worker", help="be that contestant; the benchmark itself starts it so")
    options.add_argument("--file", type=Path, help="of a contestant: its data, or its source")
    options.add_argument("--number", type=int, default=0, help="of a contestant: workers, or block size")
    arguments = options.parse_args()
    if arguments.worker:
        work(arguments)
        return
    print(machine())
    sums(arguments)
    with tempfile.TemporaryDirectory() as folder:
        characters(arguments, Path(folder))
        sizes(arguments, Path(folder))


if __name__ == "__main__":
    main()
