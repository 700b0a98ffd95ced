"""Stop signals: training ends between two steps with everything saved; any other work stops at once.

SIGINT (Ctrl-C), SIGTERM and SIGHUP; within a SLURM job also SIGUSR1 and SIGUSR2, which announce that its time limit is
near (`sbatch --signal`), so that it requeues itself. A signal that the parent process ignores (`nohup`) stays ignored.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

REQUEUE = ("SIGUSR1", "SIGUSR2")


class Stopped(SystemExit):
    """The process was asked to stop, by signal `number`. Exit code 130 after Ctrl-C, otherwise 143."""

    def __init__(self, number: int):
        super().__init__(130 if number == signal.SIGINT else 143)
        self.number = number


class StopSignals:
    """The handlers. While `waits` is set, a signal is only noted in `received`, for the training loop to check."""

    def __init__(self) -> None:
        self.waits = False
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers, until `restore`."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) != self.handle:
            self.received = None  # by an earlier training of this process, in a notebook
        names = ("SIGINT", "SIGTERM", "SIGHUP", *(REQUEUE if "SLURM_JOB_ID" in os.environ else ()))
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            before = signal.getsignal(number)
            if before != signal.SIG_IGN and before != self.handle:
                self.previous.setdefault(number, before)
                signal.signal(number, self.handle)

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.__init__()  # type: ignore[misc]

    def handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        if again and number == signal.SIGINT:
            os._exit(130)  # files are renamed into place when they are whole, so none is harmed
        if not self.waits:
            raise Stopped(number)


STOP = StopSignals()
"""The stop signals of this process."""


def requeue(number: int) -> None:
    """Requeue this SLURM job, if the signal said that its time limit is near."""
    if number not in [getattr(signal, name, None) for name in REQUEUE]:
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True)
        sys.stderr.write(f"requeued SLURM job {job}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"could not requeue SLURM job {job}: {error}\n")
