"""Watches the processes of one training: when one dies, freezes or is stopped, all end, and one line says why.

Left alone, the others would wait in a collective operation: for half an hour with NCCL, and deaf to signals, because
Python's handlers run in the main thread, which waits in there. So a thread in each process looks after it.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mingpt_lightning.cli.processes import PARENT
from mingpt_lightning.errors import UserError, resource_error
from mingpt_lightning.signals import STOP

LOOK, BEAT, GRACE, JUDGE = 0.2, 0.5, 10.0, 3.0
"""Seconds: between two looks; between two signs of life; until a process that should have ended is made to; without a
sign of life, until a process is held for dead after a failed collective operation."""

GO_ON = "Go on from the last checkpoint with resume=auto."

COLLECTIVE = re.compile(r"gloo|nccl|connection|socket|peer|process group|timed out|store", re.IGNORECASE)
"""What an error of a collective operation says of itself."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher of processes by commands, without its observer, which kills this process without a word."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **more: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            try:
                self._call_children_scripts()
            finally:
                del os.environ[PARENT]
        return function(*args, **more)


def use_launcher(trainer: pl.Trainer) -> None:
    """Replace Lightning's launcher by the one above."""
    found = trainer.strategy.launcher
    if type(found) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = Launcher(found.cluster_environment, found.num_processes, found.num_nodes)


def log_file(folder: Path, rank: int) -> Path:
    """Where a process other than rank 0 writes what it would print."""
    return folder / f"rank-{rank}.log"


class Watch(threading.Thread):
    """The thread. timeout: seconds without a sign of life after which a process is held for frozen.

    Signs of life are numbers in the store of torch.distributed; each process counts its own up. folder: where the logs
    of the other processes are.
    """

    def __init__(self, trainer: pl.Trainer, folder: Path, timeout: float):
        super().__init__(daemon=True, name="watch")
        self.trainer, self.folder, self.timeout = trainer, folder, timeout
        self.rank, self.size = trainer.global_rank, trainer.world_size
        self.parent = int(os.environ[PARENT]) if PARENT in os.environ else None
        self.terminal = os.dup(2)  # standard error, before a log takes its place
        self.signals: list[tuple[int, float]] = []  # and when they came
        self.done = threading.Event()
        self.heard: dict[int, float] = {}  # when each process last gave a sign of life
        self.people: dict[int, tuple[str, int]] = {}  # host and process id of each
        self.reached = time.monotonic()  # when the store last answered
        self.trained = False  # training has begun
        self.left: tuple[int, float, int] | None = None  # a process that has left: exit code, when seen, rank

    @property
    def children(self) -> list[Any]:
        """The processes that this one has started: ranks 1, 2, … of its node."""
        return getattr(self.trainer.strategy.launcher, "procs", [])

    def run(self) -> None:
        threading.Thread(target=self.beat, daemon=True, name="signs of life").start()
        while not self.done.wait(LOOK):
            self.trained |= STOP.waits
            self.obey()
            self.look()

    def beat(self) -> None:
        """Give signs of life, and listen to those of others, once the processes have found each other."""
        while not dist.is_initialized():
            if self.done.wait(LOOK):
                return
        with contextlib.suppress(RuntimeError):  # the store is gone: another thread says why
            store = dist.PrefixStore("mingpt_lightning", dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]
            store.set_timeout(timedelta(days=1))
            store.set(f"who/{self.rank}", f"{socket.gethostname()} {os.getpid()}")
            seen, number = dict[int, bytes](), 0
            self.heard = dict.fromkeys(range(self.size), time.monotonic())
            while not self.done.wait(BEAT):
                number += 1
                store.set(f"alive/{self.rank}", str(number))
                for rank in range(self.size):
                    if rank not in self.people and store.check([f"who/{rank}"]):
                        host, _, process = store.get(f"who/{rank}").decode().rpartition(" ")
                        self.people[rank] = host, int(process)
                    if store.check([f"alive/{rank}"]) and (now := store.get(f"alive/{rank}")) != seen.get(rank):
                        seen[rank], self.heard[rank] = now, time.monotonic()
                self.reached = time.monotonic()

    def silent(self, seconds: float) -> list[int]:
        """The other processes without a sign of life for that long; rank 0 alone where its store doesn't answer."""
        now = time.monotonic()
        if self.heard and self.rank and now - self.reached > seconds:
            return [0]
        return [rank for rank, when in self.heard.items() if rank != self.rank and now - when > seconds]

    def obey(self) -> None:
        """End this process where it can't do so itself: a signal, and the main thread waits for other processes."""
        if not self.signals:
            return
        (number, since), again = self.signals[0], len(self.signals) > 1
        waiting = not self.trained and time.monotonic() - since > JUDGE
        if waiting or (again and (number == signal.SIGINT or self.silent(2.0) or not self.heard)):
            self.end(f"stopped by {signal.Signals(number).name}", 130 if number == signal.SIGINT else 143)

    def look(self) -> None:
        """End this process where another one has died, frozen or failed."""
        for local, child in enumerate(self.children, 1):
            code = child.poll()
            if code is not None and code < 0:
                text = f"error: {self.name_of(self.rank + local)} was killed by {signal.Signals(-code).name}"
                self.end(f"{text}. {GO_ON}", 1)
            elif code and self.left is None:
                self.left = code, time.monotonic(), self.rank + local
        grace = GRACE if self.trained else 2.0  # before, this one may be waiting for it for ever
        if self.left is not None and time.monotonic() - self.left[1] > grace:
            self.end_as_the_other()
        if self.parent is not None and os.getppid() != self.parent:
            local_zero = self.rank - self.rank % self.trainer.num_devices
            self.end(f"error: {self.name_of(local_zero)} was killed. {GO_ON}", 1, [local_zero])
        if frozen := self.silent(self.timeout):
            names = ", ".join(map(self.name_of, frozen))
            text = f"error: {names} gave no sign of life for {self.timeout:g} seconds (process_timeout)"
            self.end(f"{text}. {GO_ON}", 1, frozen)

    def name_of(self, rank: int) -> str:
        """A process, for a message."""
        host, process = self.people.get(rank, ("", 0))
        elsewhere = f" on {host}" if host and host != socket.gethostname() else ""
        return f"rank {rank}" + (f" (process {process}{elsewhere})" if process else "")

    def end_as_the_other(self) -> None:
        """End with the exit code of a process that has left, and its last words."""
        assert self.left is not None
        code, _, rank = self.left
        if code in (130, 143):
            self.end(f"stopped by {'SIGINT' if code == 130 else 'SIGTERM'}", code)
        log = log_file(self.folder, rank)
        with contextlib.suppress(OSError, IndexError):
            last = log.read_text(errors="replace").splitlines()[-1]
            if last.startswith("error: "):
                self.end(f"error: rank {rank}: {last.removeprefix('error: ')}", code)
        self.end(f"error: {self.name_of(rank)} ended with exit code {code}. See {log}.", code)

    def reason(self) -> None:
        """Called by the main thread when a collective operation has failed: end for the reason of that, if it's known.

        Returns where no other process is to blame.
        """
        until = time.monotonic() + JUDGE + 2 * BEAT
        while time.monotonic() < until:
            self.look()
            if self.left is not None:
                self.end_as_the_other()
            time.sleep(LOOK)
        if gone := self.silent(JUDGE):
            self.end(f"error: {', '.join(map(self.name_of, gone))} was killed. {GO_ON}", 1, gone)

    def end(self, text: str, code: int, others: list[int] | None = None) -> None:
        """Print a line, kill what this process has started and frozen ones of this machine, and end at once."""
        speaker = min({*range(self.size)} - {*(others or [])})
        with contextlib.suppress(OSError):
            if self.rank == speaker:
                os.write(self.terminal, f"{text}\n".encode())
            if self.rank:
                os.write(2, f"{text}\n".encode())
        for child in self.children:
            with contextlib.suppress(OSError):
                child.kill()
        for rank in others or []:
            host, process = self.people.get(rank, ("", 0))
            if process and host == socket.gethostname():
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            elif self.parent is not None and rank == self.rank - self.rank % self.trainer.num_devices:
                with contextlib.suppress(OSError):
                    os.kill(self.parent, signal.SIGKILL)
        os._exit(code)

    def wait_for_children(self) -> None:
        """Let the processes that this one has started end; kill those that don't."""
        until = time.monotonic() + GRACE
        for child in self.children:
            with contextlib.suppress(Exception):
                child.wait(max(0.1, until - time.monotonic()))
            if child.poll() is None:
                child.kill()


@contextlib.contextmanager
def watched(trainer: pl.Trainer, folder: Path, timeout: float) -> Iterator[None]:
    """Within this, the processes of a training watch each other; those other than rank 0 print into logs in `folder`.

    An error that another process is to blame for ends this one with a line about that. With one process, nothing of
    this is done.
    """
    if trainer.world_size == 1:
        yield
        return
    watch = Watch(trainer, folder, timeout)
    if watch.rank:
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(log_file(folder, watch.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=listen, args=(read, watch), daemon=True, name="signals").start()
    watch.start()
    try:
        yield
    except Exception as error:
        mine = isinstance(error, UserError) or resource_error(error) is not None
        if not mine and COLLECTIVE.search(f"{type(error).__name__} {error}"):
            watch.reason()
        raise
    finally:
        if watch.rank == 0 or watch.children:
            watch.wait_for_children()
        watch.done.set()
        watch.join()
        os.close(watch.terminal)
        signal.set_wakeup_fd(before)
        os.close(write)
        if watch.rank and not isinstance(sys.exc_info()[1], Exception):  # which will be printed into the log
            with contextlib.suppress(OSError):
                if not log_file(folder, watch.rank).stat().st_size:
                    log_file(folder, watch.rank).unlink()


def listen(read: int, watch: Watch) -> None:
    """Note signals as they come, also while the main thread can't."""
    while received := os.read(read, 1):
        if received[0] in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            watch.signals.append((received[0], time.monotonic()))
    os.close(read)
