"""Runs of the command line that are killed, signalled or starved, and what is left of them.

A run is a fork of this process, in which everything is imported already: a start takes milliseconds instead of
seconds, so that hundreds of them are affordable. Nothing else is different from `python main.py`.
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

Verdict = str
"""What went wrong in a case; "" is right."""

MAIN = str(Path(__file__).parent.parent / "main.py")
TINY = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.dropout=0.1", "trainer=cpu"),
    *("trainer.max_steps=60", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=13"),
    *("trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_train_steps=5", "datamodule.batch_size=16"),
    *("trainer.limit_val_batches=2", "trainer.limit_test_batches=2"),
)
"""A run of half a second in which everything happens: dropout, accumulation, validations, checkpoints."""


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
            from mingpt_lightning.cli import main
            from mingpt_lightning.signals import STOP

            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
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
        """The exit code, negative for a signal; 999 for a process that had to be killed because it hung."""
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
    def said(self) -> str:
        """What it wrote on standard error."""
        return (self.folder / "stderr.txt").read_text(errors="replace")


def preload() -> None:
    """Import what a run imports, and start no thread."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("transformers", "hydra._internal.utils", "mingpt_lightning.tasks"):
        importlib.import_module(name)
    for project in ("adder", "sort", "chargpt", "text"):
        importlib.import_module(f"projects.{project}.datamodule")


def state(run_dir: Path) -> str:
    """A SHA-256 of all that a finished training leaves: weights, optimizer, schedules, counters, and its log."""
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    kept = {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")}
    kept["tokens"] = content["mingpt_lightning"]["tokens_seen"]
    with (run_dir / "metrics.csv").open(newline="") as stream:
        kept["log"] = list(csv.reader(stream))
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
    """The last line of what a run said."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
