"""What becomes of runs that are killed, signalled, starved, damaged or mistyped: figures F1 to F18, with counts.

    python -m benchmarks.reliability [--only NAME …] [--tiny]

Every case is a real process (see `benchmarks.faults`) and has a seed of its own, so that it can be had again. A row
says how many cases came out as promised; each that didn't is printed below the table, with its number. Takes half an
hour on two cores. Unwritable folders need the rights to become another user; without them they are left out.
"""

import argparse
import hashlib
import itertools
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import Table, machine, parser
from benchmarks.corruption import damaged, damaged_copy, unsafe
from benchmarks.faults import TINY, Run, Verdict, last_line, preload, state
from benchmarks.fuzz import command_line

SHORT = ("trainer.max_steps=24", "trainer.val_check_interval=6")
DATA = {
    "adder": ("datamodule=adder",),
    "sort": ("datamodule=sort",),
    "chargpt": ("datamodule=chargpt", "datamodule.block_size=16"),
    "text": ("datamodule=text", "datamodule.block_size=16", "datamodule.vocab_size=300"),
}
OPTIMIZERS = {"AdamW": (), "Muon": ("optimizer=muon",)}
PRECISIONS = {"float32": ("trainer.precision=32-true",), "bf16-mixed": ("trainer.precision=bf16-mixed",)}
MOMENTS = {  # where a run is stopped: before these optimizer steps, by a kill or a signal
    "after a save": "save",
    "between saves": "step",
    "in an accumulation window": "window",
    "in a validation": "validation",
}


class Bench:
    """A folder for the cases, and what a run that isn't interrupted leaves for some arguments."""

    def __init__(self, folder: Path):
        self.folder = folder

    def reference(self, arguments: tuple[str, ...]) -> str:
        """The state at the end of a run that nothing happens to; made once, whichever process asks first."""
        place = self.folder / hashlib.sha256(repr(arguments).encode()).hexdigest()[:12]
        known = place.with_suffix(".txt")
        if not known.exists():
            place = place.with_suffix(f".{os.getpid()}")
            run = Run(place, *arguments, "run_dir=run")
            if code := run.wait():
                raise RuntimeError(f"the undisturbed run failed with {code}: {run.said}")
            part = place.with_suffix(f".{os.getpid()}.part")
            part.write_text(state(place / "run"))
            part.rename(known)
        return known.read_text()

    def finish(self, place: Path, arguments: tuple[str, ...]) -> Verdict:
        """Go on with a run until its end; it must be what it would have been."""
        run = Run(place, *arguments, "run_dir=run", "resume=auto")
        if code := run.wait():
            return f"the resumed run ended with {code}: {last_line(run.said)}"
        if state(place / "run") != self.reference(arguments):
            return "the resumed run ended in another state"
        leftovers = [path.name for path in (place / "run").rglob("*.part")]
        return f"left behind: {leftovers}" if leftovers else ""


def killed(bench: Bench, number: int) -> Verdict:
    """SIGKILL at a random time, and up to twice more while it goes on (F1)."""
    rng, place = random.Random(number), bench.folder / f"kill_{number}"
    bench.reference(TINY)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        run = Run(place, *TINY, "run_dir=run", "resume=auto")
        time.sleep(rng.uniform(0, 1.6))
        run.send(signal.SIGKILL)
        if (code := run.wait()) not in (0, -signal.SIGKILL):
            return f"ended with {code}: {last_line(run.said)}"
    return bench.finish(place, TINY)


CRASH = (*TINY, "trainer.max_steps=15")


def at_operation(number: int, after: bool, count: Path | None = None) -> None:
    """Make this process kill itself at the n-th operation on files that a save consists of."""
    import mingpt_lightning.storage as storage

    done = itertools.count(1)

    def watched(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            here = next(done)
            if count is not None:
                count.write_text(str(here))
            if here == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*arguments, **more)
            if here == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    storage.torch.save = watched("write", torch.save)
    for name in ("fsync", "replace", "open"):
        setattr(os, name, watched(name, getattr(os, name)))
    Path.unlink = watched("unlink", Path.unlink)  # type: ignore[method-assign]


def crashed(bench: Bench, number: int, after: bool) -> Verdict:
    """SIGKILL before or after the n-th operation on files (F2)."""
    place = bench.folder / f"crash_{number}_{after}"
    run = Run(place, *CRASH, "run_dir=run", before=partial(at_operation, number, after))
    if (code := run.wait()) != -signal.SIGKILL:
        return f"ended with {code} instead of being killed: {last_line(run.said)}"
    return good_file(place) or bench.finish(place, CRASH)


def good_file(place: Path) -> Verdict:
    """A run that has written a checkpoint has a good one: the newest, or the one before."""
    from mingpt_lightning.storage import damage

    folder = place / "run" / "checkpoints"
    files = [folder / name for name in ("last.ckpt", "previous.ckpt") if (folder / name).exists()]
    bad = [f"{file.name}: {wrong}" for file in (*files, *folder.glob("best.ckpt")) if (wrong := damage(file))]
    return f"damaged: {bad}" if bad else ""


def limit_files(size: int, save: int, kill: bool) -> None:
    """From the n-th save on, no file may grow beyond some bytes: the system ends the process there, or its write."""
    import mingpt_lightning.storage as storage

    real, saves = torch.save, itertools.count(1)

    def limited(*arguments: Any, **more: Any) -> None:
        if next(saves) == save:
            if kill:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        real(*arguments, **more)

    storage.torch.save = limited


def cut_off(bench: Bench, size: int, save: int) -> Verdict:
    """Killed in the middle of a write, at a byte (F2)."""
    place = bench.folder / f"cut_{size}_{save}"
    run = Run(place, *CRASH, "run_dir=run", before=partial(limit_files, size, save, True))
    if (code := run.wait()) != -signal.SIGXFSZ:
        return f"ended with {code} instead of being killed: {last_line(run.said)}"
    return good_file(place) or bench.finish(place, CRASH)


def full(bench: Bench, size: int, save: int) -> Verdict:
    """The disk takes no more, from a byte of a save on (F8)."""
    place = bench.folder / f"full_{size}_{save}"
    run = Run(place, *CRASH, "run_dir=run", before=partial(limit_files, size, save, False))
    if (code := run.wait()) != 4:
        return f"ended with {code} instead of 4: {last_line(run.said)}"
    if not last_line(run.said).startswith("error: cannot write "):
        return f"said {last_line(run.said)}"
    return good_file(place) or bench.finish(place, CRASH)


def stop_at(moment: str, step: int, number: int) -> None:
    """Make this process send itself a signal at a moment of a training, in or after an optimizer step."""
    from mingpt_lightning import LanguageModel
    from mingpt_lightning.checkpoint import Checkpoint

    sent = []

    def send(due: bool) -> None:
        if due and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    if moment == "save":
        real_save = Checkpoint.save

        def save(self: Checkpoint, trainer: Any, pending: bool = False) -> None:
            real_save(self, trainer, pending)
            send(trainer.global_step >= step)

        Checkpoint.save = save  # type: ignore[method-assign]
        return
    name = "validation_step" if moment == "validation" else "training_step"
    real = getattr(LanguageModel, name)

    def observed(self: LanguageModel, batch: Any, batch_idx: int) -> Any:
        windows = self.trainer.accumulate_grad_batches
        middle = moment != "window" or windows == 1 or batch_idx % windows != windows - 1
        send(self.global_step >= step and middle)
        return real(self, batch, batch_idx)

    setattr(LanguageModel, name, observed)


def cell(bench: Bench, number: int) -> Verdict:
    """One of the matrix: data, optimizer, precision, accumulation, moment, and how the run is stopped (F3)."""
    cells = list(itertools.product(DATA, OPTIMIZERS, PRECISIONS, (1, 4), MOMENTS))
    data, optimizer, precision, windows, moment = cells[number * 37 % len(cells)]
    how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
    arguments = (*TINY, *SHORT, *DATA[data], *OPTIMIZERS[optimizer], *PRECISIONS[precision])
    arguments = (*arguments, f"trainer.accumulate_grad_batches={windows}")
    bench.reference(arguments)
    place = bench.folder / f"cell_{number}"
    step = random.Random(number).randrange(6 // windows * windows, 20 if windows == 1 else 18)
    before = partial(stop_at, MOMENTS[moment], step, how)
    run = Run(place, *arguments, "run_dir=run", before=before)
    expected = -how if how == signal.SIGKILL else 143
    if (code := run.wait()) not in (expected, 0):
        return f"{data} {optimizer} {precision} {windows} {moment}: {code}: {last_line(run.said)}"
    wrong = bench.finish(place, arguments)
    return wrong and f"{data} {optimizer} {precision} {windows} {moment}: {wrong}"


def signalled(bench: Bench, name: str, number: int) -> tuple[Verdict, float]:
    """A signal at a random time of a training; then it goes on (F4). Also the seconds until it ended."""
    rng, place = random.Random(number), bench.folder / f"{name}_{number}"
    what = getattr(signal, name)
    bench.reference(TINY)
    run = Run(place, *TINY, "run_dir=run")
    time.sleep(rng.uniform(0, 1.3))
    sent, start = run.send(what), time.perf_counter()
    code, seconds = run.wait(), time.perf_counter() - start
    just_over = code == 0 and (not sent or seconds < 0.1)
    if (code != (130 if name == "SIGINT" else 143) and not just_over) or "Traceback" in run.said:
        return f"ended with {code} after {seconds:.1f} s: {last_line(run.said)}", seconds
    return bench.finish(place, TINY), seconds


def poisoned(bench: Bench, number: int) -> Verdict:
    """A loss or a gradient that isn't finite (F12)."""
    from mingpt_lightning import LanguageModel

    rng, place = random.Random(number), bench.folder / f"poison_{number}"
    batch, poison = rng.randrange(0, 100), rng.choice([float("nan"), float("inf")])
    kind = rng.choice(["loss", "gradient"])

    def before() -> None:
        real, calls = LanguageModel.loss_sum, itertools.count()

        def loss_sum(self: Any, *arguments: Any) -> Any:
            total, tokens = real(self, *arguments)
            if next(calls) == batch:
                if kind == "loss":
                    total = total * poison
                else:
                    total.register_hook(lambda gradient: gradient * poison)
            return total, tokens

        LanguageModel.loss_sum = loss_sum  # type: ignore[method-assign]

    run = Run(place, *TINY, "run_dir=run", before=before)
    if (code := run.wait()) != 5:
        return f"ended with {code} instead of 5: {last_line(run.said)}"
    if f"at step {batch // 2 + 1}," not in last_line(run.said) or "learning rate" not in last_line(run.said):
        return f"said {last_line(run.said)}"
    if batch // 2 >= 5 and "last.ckpt" not in last_line(run.said):
        return f"did not name the last good file: {last_line(run.said)}"
    return good_file(place) or bench.finish(place, TINY)


def unwritable(bench: Bench, number: int) -> Verdict:
    """A folder that this user may not write: said before the first step (F9)."""
    place = bench.folder / f"unwritable_{number}"
    run_dir = place / "run" if number % 2 else place / "run" / "deeper"
    run_dir.mkdir(parents=True)
    place.chmod(0o777)
    (place / "run").chmod(0o555)
    run_dir.chmod(0o555)

    def before() -> None:
        import mingpt_lightning.cli as cli

        real = cli.check

        def check(cfg: Any) -> None:
            real(cfg)
            os.seteuid(65534)  # nobody; from here on, as it may not even read the Python that it runs

        cli.check = check

    run = Run(place, *TINY, f"run_dir={run_dir}", before=before)
    code = run.wait()
    if code != 2 or not last_line(run.said).startswith("error: cannot write "):
        return f"ended with {code}: {last_line(run.said)}"
    return "" if not list(run_dir.iterdir()) and "GPT of" not in run.said else "something was done before"


def mistyped(bench: Bench, number: int) -> Verdict:
    """A command line from the grammar of `benchmarks.fuzz` (F6)."""
    arguments = command_line(random.Random(number))
    place = bench.folder / f"fuzz_{number}"

    def before() -> None:
        limit = 8 * 2**30  # a model that is too large is a mistake too
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    run = Run(place, *arguments, before=before)
    code = run.wait(30)
    said = run.said
    shutil.rmtree(place, ignore_errors=True)
    if code not in (0, 2, 3, 4, 5) or "Traceback" in said:
        return f"{' '.join(arguments)}: {code}: {last_line(said)}"
    if code and not any(line.startswith("error: ") for line in said.splitlines()):
        return f"{' '.join(arguments)}: said {last_line(said)}"
    return ""


def same_twice(bench: Bench, number: int) -> Verdict:
    """Two runs of one command are equal to the last bit (F13)."""
    data = list(DATA)[number % len(DATA)]
    arguments = (*TINY, *SHORT, *DATA[data], f"seed={number}", f"trainer.accumulate_grad_batches={1 + number % 3}")
    states = []
    for name in ("a", "b"):
        place = bench.folder / f"twice_{number}_{name}"
        if code := Run(place, *arguments, "run_dir=run").wait():
            return f"ended with {code}"
        states.append(state(place / "run"))
    return "" if states[0] == states[1] else "two runs differ"


def save_cost(options: argparse.Namespace, table: Table) -> None:
    """Seconds and memory of writing 124 M parameters with AdamW's state, beside torch and Lightning (F16)."""
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

    from mingpt_lightning.storage import write_checkpoint

    weights = 10**6 if options.tiny else 124_000_000
    content = {name: [torch.randn(weights // 100) for _ in range(100)] for name in ("weights", "first", "second")}

    def plain(file: Path) -> None:
        torch.save(content, file)

    def synced(file: Path) -> None:
        torch.save(content, file)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())

    def ours(file: Path) -> None:
        write_checkpoint(content, file, 0)

    def lightning(file: Path) -> None:
        TorchCheckpointIO().save_checkpoint(content, file)

    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for _ in range(2 if options.tiny else 7):
            for function in (plain, synced, ours, lightning):
                file = Path(folder) / "x.ckpt"
                file.unlink(missing_ok=True)
                start = time.perf_counter()
                function(file)
                seconds.setdefault(function.__name__, []).append(time.perf_counter() - start)
        for function in (plain, synced, ours, lightning):
            memory[function.__name__] = extra_memory(partial(function, Path(folder) / "x.ckpt"))
    size = 3 * 4 * weights
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds["plain"], strict=True)]
        table.row(
            f"F16 saving {size / 1e9:.2f} GB: {name}",
            f"{median(times):.2f} s ({min(times):.2f} to {max(times):.2f})",
            f"{median(ratios):.2f} times torch.save, {memory[name] / size:.0%} more memory",
        )


def extra_memory(function: Callable[[], None]) -> float:
    """How much resident memory a call needs at most beyond what is there before, in bytes; in a process of its own."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        function()
        peak = next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
        )
        os.write(writer, struct.pack("q", max(0, peak - before) * 1024))
        os._exit(0)
    result = struct.unpack("q", os.read(reader, 8))[0]
    os.waitpid(pid, 0)
    return float(result)


def config_errors(options: argparse.Namespace, table: Table) -> None:
    """How long a real process takes to answer a mistake in the config (F18)."""
    cases = ["model=gtp2", "model.n_layerr=4", "trainer.max_steps=abc", "model.n_embd=50", "seed=-1", "optimizer.lr=0"]
    cases += ["model.dropout=2", "resume=maybe", "task=fly", "+colour=3", "scheduler.warmup=2", "compile=maybe"]
    times = []
    for number in range(5 if options.tiny else 50):
        start = time.perf_counter()
        command = [sys.executable, "main.py", cases[number % len(cases)]]
        result = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).parent.parent)
        times.append(time.perf_counter() - start)
        assert result.returncode == 2
        assert result.stderr.startswith(b"error: ")
    worst = sorted(times)[int(0.95 * (len(times) - 1))]
    table.row("F18 a mistake in the config is answered", f"{len(times)} commands", f"95 % within {worst:.2f} s")


def lightnings(options: argparse.Namespace, table: Table) -> None:
    """The same faults for Lightning's own checkpoints: ModelCheckpoint(save_last), DataLoader(shuffle), dropout."""
    from benchmarks.lightnings import cases

    for row in cases(2 if options.tiny else 10):
        table.row(*row)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--only", nargs="+", metavar="NAME")
    options = options_parser.parse_args()
    print(machine())
    preload()
    tiny = options.tiny
    folder = Path(tempfile.mkdtemp(prefix="reliability"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    bench = Bench(folder)
    run = Run(folder / "source", *CRASH, "run_dir=run")
    assert run.wait() == 0, run.said
    source = folder / "source" / "run"
    counted = folder / "operations"
    Run(folder / "count", *CRASH, "run_dir=run", before=partial(at_operation, 0, False, counted)).wait()
    operations = int(counted.read_text())
    size = (source / "checkpoints" / "last.ckpt").stat().st_size
    bench.reference(TINY)
    bench.reference(CRASH)

    def points(few: int, many: int) -> Iterable[int]:
        return range(few if tiny else many)

    def every(n: int) -> list[int]:
        numbers = list(range(1, n + 1))
        return numbers[:: max(1, n // 2)] if tiny else numbers

    def sizes(n: int) -> list[tuple[int, int]]:
        places = [(size * (i + 1) // (n + 2), save) for save in (1, 3) for i in range(n)]
        return places[:: max(1, len(places) // 2)] if tiny else places

    suite: dict[str, tuple[str, Callable[..., Any], list[tuple[Any, ...]]]] = {
        "kills": ("F1 SIGKILL at random times, to the same bits", killed, [(bench, n) for n in points(2, 200)]),
        "crashes": (
            "F2 SIGKILL before and after every operation of a save",
            crashed,
            [(bench, n, after) for n in every(operations) for after in (False, True)],
        ),
        "cuts": ("F2 killed within a write, at a byte", cut_off, [(bench, *place) for place in sizes(20)]),
        "matrix": ("F3 resume matrix: data, optimizer, precision, accumulation, moment", cell,
                   [(bench, n) for n in points(4, 128)]),
        "terms": ("F4 SIGTERM", signalled, [(bench, "SIGTERM", n) for n in points(2, 50)]),
        "ints": ("F4 SIGINT", signalled, [(bench, "SIGINT", n) for n in points(2, 50)]),
        "hups": ("F4 SIGHUP", signalled, [(bench, "SIGHUP", n) for n in points(1, 50)]),
        "damage": ("F5 damaged files in a run", damaged, [(source, n) for n in points(20, 500)]),
        "copies": ("F5 flipped bits in a copied file", damaged_copy, [(source, n) for n in points(20, 500)]),
        "unsafe": ("F5 files that hold code", unsafe, [(source, n) for n in points(3, 18)]),
        "fuzz": ("F6 mistyped command lines", mistyped, [(bench, n) for n in points(10, 2000)]),
        "full": ("F8 disk full at a byte of a save", full, [(bench, *place) for place in sizes(20)]),
        "unwritable": ("F9 unwritable run folders", unwritable,
                       [(bench, n) for n in points(2, 10)] if os.geteuid() == 0 else []),
        "poison": ("F12 a loss or gradient that isn't finite", poisoned, [(bench, n) for n in points(2, 20)]),
        "twice": ("F13 two runs of one command, equal", same_twice, [(bench, n) for n in points(1, 10)]),
    }  # fmt: skip
    measured = {"cost": save_cost, "errors": config_errors, "lightning": lightnings}
    failed = False
    table = Table(options, "reliability", "figure", "cases", "as promised")
    with get_context("fork").Pool(2) as pool:
        for name, (what, function, cases) in suite.items():
            if options.only and name not in options.only:
                continue
            if not cases:
                table.row(what, 0, "left out: needs root")
                continue
            results = pool.starmap(function, cases, chunksize=1)
            more = ""
            if isinstance(results[0], tuple):
                times = [seconds for _, seconds in results]
                results = [wrong for wrong, _ in results]
                more = f", stopped within {median(times):.2f} s ({max(times):.2f} at most)"
            wrong = [(number, text) for number, text in enumerate(results) if text]
            table.row(what, len(results), f"{len(results) - len(wrong)}{more}", failures=wrong)
            failed |= bool(wrong)
            for number, text in wrong[:20]:
                print(f"| case {number} | | {text[:300]} |", flush=True)
    for name, function in measured.items():
        if not options.only or name in options.only:
            function(options, table)
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
