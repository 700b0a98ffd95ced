"""Runs that are interrupted: killed at any moment, by a signal, or because the disk is full; then resumed (F1-F4, F8).

Each case must leave a valid checkpoint, and the resumed run must end bit for bit like one that was never interrupted.
"""

import itertools
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.runs import CRASH, DATA, SHORT, TINY, Bench, Run, Verdict, good_file, last_line, state

OPTIMIZERS = {"AdamW": (), "Muon": ("optimizer=muon",)}
PRECISIONS = {"float32": ("trainer.precision=32-true",), "bf16-mixed": ("trainer.precision=bf16-mixed",)}
MOMENTS = {  # when the signal is sent
    "after a save": "save",
    "between saves": "step",
    "between accumulated batches": "accumulation",
    "during validation": "validation",
}


def killed(bench: Bench, number: int) -> Verdict:
    """SIGKILL at a random time, up to three times in one run (F1)."""
    rng, place = random.Random(number), bench.folder / f"kill_{number}"
    bench.reference(TINY)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        run = Run(place, *TINY, "run_dir=run", "resume=auto")
        time.sleep(rng.uniform(0, 1.6))
        run.send(signal.SIGKILL)
        if (code := run.wait()) not in (0, -signal.SIGKILL):
            return f"ended with {code}: {last_line(run.stderr)}"
    return bench.finish(place, TINY)


def crashed_at(number: int, after: bool, count: Path | None = None) -> None:
    """Make this process send itself SIGKILL before or after the n-th file operation of its saves."""
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
    run = Run(place, *CRASH, "run_dir=run", before=partial(crashed_at, number, after))
    if (code := run.wait()) != -signal.SIGKILL:
        return f"ended with {code} instead of being killed: {last_line(run.stderr)}"
    return good_file(place) or bench.finish(place, CRASH)


def limit_files(size: int, save: int, kill: bool) -> None:
    """From the n-th save on, limit the size of files: a longer write fails or, with `kill`, ends the process."""
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
    """Killed in the middle of a write, at a given byte (F2)."""
    place = bench.folder / f"cut_{size}_{save}"
    run = Run(place, *CRASH, "run_dir=run", before=partial(limit_files, size, save, True))
    if (code := run.wait()) != -signal.SIGXFSZ:
        return f"ended with {code} instead of being killed: {last_line(run.stderr)}"
    return good_file(place) or bench.finish(place, CRASH)


def disk_full(bench: Bench, size: int, save: int) -> Verdict:
    """The disk is full, from a byte of a save on (F8)."""
    place = bench.folder / f"full_{size}_{save}"
    run = Run(place, *CRASH, "run_dir=run", before=partial(limit_files, size, save, False))
    if (code := run.wait()) != 4:
        return f"ended with {code} instead of 4: {last_line(run.stderr)}"
    if not last_line(run.stderr).startswith("error: cannot write "):
        return f"said {last_line(run.stderr)}"
    return good_file(place) or bench.finish(place, CRASH)


def stop_at(moment: str, step: int, number: int) -> None:
    """Make this process send itself a signal, once, at the given moment in or after an optimizer step."""
    from mingpt_lightning import LanguageModel
    from mingpt_lightning.checkpoint import Checkpoint

    sent = []

    def send(due: bool) -> None:
        if due and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    if moment == "save":
        real_save = Checkpoint.save

        def save(self: Checkpoint, trainer: Any) -> None:
            real_save(self, trainer)
            send(trainer.global_step >= step)

        Checkpoint.save = save  # type: ignore[method-assign]
        return
    name = "validation_step" if moment == "validation" else "training_step"
    real = getattr(LanguageModel, name)

    def observed(self: LanguageModel, batch: Any, batch_idx: int) -> Any:
        accumulated = self.trainer.accumulate_grad_batches
        middle = moment != "accumulation" or accumulated == 1 or batch_idx % accumulated != accumulated - 1
        send(self.global_step >= step and middle)
        return real(self, batch, batch_idx)

    setattr(LanguageModel, name, observed)


def combination(bench: Bench, number: int) -> Verdict:
    """A combination of data, optimizer, precision, accumulation, moment and signal (F3)."""
    combinations = list(itertools.product(DATA, OPTIMIZERS, PRECISIONS, (1, 4), MOMENTS))
    data, optimizer, precision, accumulated, moment = combinations[number * 37 % len(combinations)]
    how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
    arguments = (*TINY, *SHORT, *DATA[data], *OPTIMIZERS[optimizer], *PRECISIONS[precision])
    arguments = (*arguments, f"trainer.accumulate_grad_batches={accumulated}")
    bench.reference(arguments)
    place = bench.folder / f"matrix_{number}"
    step = random.Random(number).randrange(6 // accumulated * accumulated, 20 if accumulated == 1 else 18)
    before = partial(stop_at, MOMENTS[moment], step, how)
    run = Run(place, *arguments, "run_dir=run", before=before)
    expected = -how if how == signal.SIGKILL else 143
    if (code := run.wait()) not in (expected, 0):
        return f"{data} {optimizer} {precision} {accumulated} {moment}: {code}: {last_line(run.stderr)}"
    wrong = bench.finish(place, arguments)
    return wrong and f"{data} {optimizer} {precision} {accumulated} {moment}: {wrong}"


def signalled(bench: Bench, name: str, number: int) -> tuple[Verdict, float]:
    """A signal at a random time of training, then resuming (F4). Also the seconds until the process ended."""
    rng, place = random.Random(number), bench.folder / f"{name}_{number}"
    what = getattr(signal, name)
    bench.reference(TINY)
    run = Run(place, *TINY, "run_dir=run")
    time.sleep(rng.uniform(0, 1.3))
    sent, start = run.send(what), time.perf_counter()
    code, seconds = run.wait(), time.perf_counter() - start
    just_over = code == 0 and (not sent or seconds < 0.1)
    if (code != (130 if name == "SIGINT" else 143) and not just_over) or "Traceback" in run.stderr:
        return f"ended with {code} after {seconds:.1f} s: {last_line(run.stderr)}", seconds
    return bench.finish(place, TINY), seconds


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
