"""Runs of the command line as real processes, and hashes of what they leave behind.

A run is a fork of this process, which has imported everything already: starting one takes milliseconds instead of
seconds, which makes thousands of cases affordable. In all else it is `python main.py`.
"""

import csv
import hashlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT

Verdict = str
"""What went wrong in a case, in words; empty if nothing did."""

MAIN = str(ROOT / "main.py")
TINY = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.dropout=0.1", "trainer=cpu"),
    *("trainer.max_steps=60", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=13"),
    *("trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_train_steps=5", "datamodule.batch_size=16"),
    *("trainer.limit_val_batches=2", "trainer.limit_test_batches=2"),
)
"""A run of half a second with everything in it: dropout, accumulation, validations, checkpoints."""


CRASH = (*TINY, "trainer.max_steps=15")
SHORT = ("trainer.max_steps=24", "trainer.val_check_interval=6")
DATA = {
    "adder": ("datamodule=adder",),
    "sort": ("datamodule=sort",),
    "chargpt": ("datamodule=chargpt", "datamodule.block_size=16"),
    "text": ("datamodule=text", "datamodule.block_size=16", "datamodule.vocab_size=300"),
}


TIMES = ("seconds", "tokens_per_second", "mfu")
"""The columns of metrics.csv that differ from run to run."""


class Run:
    """A command line in a process of its own, whose standard error is kept in `folder`/stderr.txt."""

    def __init__(self, folder: Path, *arguments: str, before: Callable[[], None] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        sys.stdout.flush()
        sys.stderr.flush()
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            os.read(reader, 1)  # until it has begun
            os.close(reader)
            return
        code = 1
        try:
            os.chdir(folder)
            for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            sys.argv = [MAIN, *arguments]
            from mingpt_lightning.cli.main import main
            from mingpt_lightning.signals import STOP

            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of a shell
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
            if before is not None:
                before()
            STOP.install()
            os.close(writer)
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code, negative for a signal; 999 for a process that did not end in time and was killed."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return 999

    def send(self, number: int) -> bool:
        """Send a signal; False if the process has ended."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        os.kill(self.pid, number)
        return True

    @property
    def stderr(self) -> str:
        """What it has written to standard error."""
        return (self.folder / "stderr.txt").read_text(errors="replace")


def preload() -> None:
    """Import everything that a run imports, without starting a thread, which a fork would not inherit."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("transformers", "hydra._internal.utils", "mingpt_lightning.cli.fit", "matplotlib.figure"):
        importlib.import_module(name)
    for project in ("adder", "sort", "chargpt", "text"):
        importlib.import_module(f"projects.{project}.datamodule")


def state(run_dir: Path) -> str:
    """A SHA-256 of the final state of a run: weights, optimizer, schedules, counters, and metrics.csv."""
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    kept = {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")}
    kept["tokens"] = content["mingpt_lightning"]["tokens_seen"]
    with (run_dir / "metrics.csv").open(newline="") as stream:
        rows = csv.DictReader(stream)
        kept["log"] = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return hash_of(kept)


def hash_of(value: Any) -> str:
    """A SHA-256 of nested data, to the last bit."""
    digest = hashlib.sha256()
    feed(digest, value)
    return digest.hexdigest()


def feed(digest: Any, value: Any) -> None:
    """Hash nested data, tensors by their bits."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else repr(value).encode())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            feed(digest, item)
    else:
        digest.update(repr(value).encode())


def last_line(text: str) -> str:
    """The last line of a text that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


class Bench:
    """The folder of all cases, and the final states of uninterrupted runs to compare them with."""

    def __init__(self, folder: Path):
        self.folder = folder

    def reference(self, arguments: tuple[str, ...]) -> str:
        """The final state of an uninterrupted run with these arguments; computed by the first process that asks."""
        place = self.folder / hashlib.sha256(repr(arguments).encode()).hexdigest()[:12]
        known = place.with_suffix(".txt")
        if not known.exists():
            place = place.with_suffix(f".{os.getpid()}")
            run = Run(place, *arguments, "run_dir=run")
            if code := run.wait():
                raise RuntimeError(f"the uninterrupted run failed with {code}: {run.stderr}")
            part = place.with_suffix(f".{os.getpid()}.part")
            part.write_text(state(place / "run"))
            part.rename(known)
        return known.read_text()

    def finish(self, place: Path, arguments: tuple[str, ...]) -> Verdict:
        """Resume a run to its end; its final state must be that of an uninterrupted one."""
        run = Run(place, *arguments, "run_dir=run", "resume=auto")
        if code := run.wait():
            return f"the resumed run ended with {code}: {last_line(run.stderr)}"
        if state(place / "run") != self.reference(arguments):
            return "the resumed run ended in another state"
        leftovers = [path.name for path in (place / "run").rglob("*.part")]
        return f"left behind: {leftovers}" if leftovers else ""


def good_file(place: Path) -> Verdict:
    """All checkpoints that a run has left must be valid."""
    from mingpt_lightning.storage import find_corruption

    folder = place / "run" / "checkpoints"
    files = [folder / name for name in ("last.ckpt", "previous.ckpt") if (folder / name).exists()]
    bad = [f"{file.name}: {wrong}" for file in (*files, *folder.glob("best.ckpt")) if (wrong := find_corruption(file))]
    return f"damaged: {bad}" if bad else ""
