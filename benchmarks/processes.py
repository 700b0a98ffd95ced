"""Trainings in several processes: what becomes of them when ranks die, freeze, are stopped or start late; their speed.

    python -m benchmarks.processes [--tiny] [--only NAME …]

Every case is `python main.py` with two CPU processes (gloo), or torchrun. A row counts the cases that ended as
promised: every process gone within ten seconds, the right exit code, one line that says why, and the same bits as an
uninterrupted run once it is resumed. Half an hour on two cores.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.common import ROOT, Table, machine, parser
from benchmarks.reliability.runs import TINY, Verdict, good_file, last_line, state

MAIN = str(ROOT / "main.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
RUN = (*TINY, "trainer.max_steps=100", "datamodule.batch_size=8", "process_timeout=10", "run_dir=run")
TWO = (*RUN, "trainer.devices=2")
SOON = 10.0
"""Seconds within which all processes must be gone."""


def stat(process: int) -> list[str]:
    """The state, parent and further fields of a process; nothing if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields


def children(process: int) -> list[int]:
    """The processes that a process has started, in the order of their numbers."""
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted(number for number in numbers if stat(number)[1:2] == [str(process)])


class Training:
    """A command in a session of its own, and the processes that train in it. Its output is kept in `folder`."""

    def __init__(
        self, folder: Path, *arguments: str, command: list[str] | None = None, name: str = "output", **env: str
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.output, self.is_torchrun = folder, folder / f"{name}.txt", bool(command)
        self.known: set[int] = set()
        command = [*(command or [sys.executable]), MAIN, *arguments]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )

    def ranks(self) -> list[int]:
        """The process ids by rank, of those that were started so far."""
        started = children(self.process.pid)
        found = started if self.is_torchrun else [self.process.pid, *started]
        self.known |= {self.process.pid, *found}
        return found

    def wait_for(self, condition: Callable[[], object], seconds: float = 90.0) -> bool:
        """Wait until a condition holds; False if the command ends before, or it takes too long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.02)
        return False

    def saved(self) -> bool:
        """Whether a checkpoint has been written."""
        return (self.folder / "run" / "checkpoints" / "last.ckpt").exists()

    def end(self, seconds: float = SOON) -> tuple[int, str, list[int]]:
        """Wait for the end: the exit code (999: too late), the output, and processes that were left over."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 999
        until = time.monotonic() + 3.0
        while (left := [process for process in self.known if stat(process)]) and time.monotonic() < until:
            time.sleep(0.05)
        for process in left:
            os.kill(process, signal.SIGKILL)
        self.process.wait()
        return code, self.output.read_text(errors="replace"), left


def verdict(training: Training, codes: tuple[int, ...], words: str, seconds: float = SOON) -> Verdict:
    """What is wrong with the end of a training that should have one of these exit codes and say these words once."""
    code, output, left = training.end(seconds)
    if code not in codes or left:
        return f"ended with {code}, left {len(left)} processes: {last_line(output)}"
    if "Traceback" in output or output.count(words) != 1:
        return f"said {output.count(words)} times {words!r}: {output[-300:]}"
    return good_file(training.folder)


def reference(folder: Path) -> str:
    """The final state of an uninterrupted run of two processes."""
    if not (folder / "reference" / "run" / "summary.json").exists():
        code, output, _ = Training(folder / "reference", *TWO).end(240)
        assert code == 0, output
    return state(folder / "reference" / "run")


def finish(folder: Path, place: Path) -> Verdict:
    """Resume a run to its end; its final state must be that of an uninterrupted one."""
    code, output, _ = Training(place, *TWO, "resume=auto").end(240)
    if code:
        return f"the resumed run ended with {code}: {last_line(output)}"
    return "" if state(place / "run") == reference(folder) else "the resumed run ended in another state"


def killed(folder: Path, number: int) -> Verdict:
    """SIGKILL of a rank at a random time of training (F10)."""
    rng, rank = random.Random(number), number % 2
    training = Training(folder / f"killed-{number}", *TWO)
    if not training.wait_for(training.saved):
        return f"never saved: {last_line(training.end()[1])}"
    time.sleep(rng.uniform(0, 0.8))
    os.kill(training.ranks()[rank], signal.SIGKILL)
    codes = (1,) if rank else (-signal.SIGKILL,)
    return verdict(training, codes, f"rank {rank} ") or finish(folder, training.folder)


def stopped(folder: Path, number: int) -> Verdict:
    """A stop signal to the first rank, the second, or both, at a random time (F11)."""
    rng, kind = random.Random(number), (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number % 3]
    training = Training(folder / f"stopped-{number}", *TWO)
    early = number % 4 == 3  # while the processes look for each other
    if not training.wait_for(lambda: len(training.ranks()) == 2 if early else training.saved()):
        return f"never began: {last_line(training.end()[1])}"
    time.sleep(rng.uniform(0, 0.8))
    ranks = training.ranks()
    for process in ((ranks[0],), (ranks[1],), ranks)[number // 3 % 3]:
        os.kill(process, kind)
    code = 130 if kind == signal.SIGINT else 143
    return verdict(training, (code,), "stopped by", 30) or finish(folder, training.folder)


def frozen(folder: Path, number: int) -> Verdict:
    """SIGSTOP of a rank: found after `process_timeout`, here ten seconds."""
    rank = number % 2
    training = Training(folder / f"frozen-{number}", *TWO)
    if not training.wait_for(training.saved):
        return f"never saved: {last_line(training.end()[1])}"
    os.kill(training.ranks()[rank], signal.SIGSTOP)
    codes = (1,) if rank else (-signal.SIGKILL,)
    return verdict(training, codes, "gave no sign of life", 30) or finish(folder, training.folder)


def impatient(folder: Path, number: int) -> Verdict:
    """A frozen rank, and two SIGTERMs to the other before it is found."""
    training = Training(folder / f"impatient-{number}", *TWO, "process_timeout=60")
    if not training.wait_for(training.saved):
        return f"never saved: {last_line(training.end()[1])}"
    ranks = training.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(1)
    os.kill(ranks[0], signal.SIGTERM)
    time.sleep(3)
    os.kill(ranks[0], signal.SIGTERM)
    return verdict(training, (143,), "stopped by SIGTERM")


def restarted(folder: Path, number: int) -> Verdict:
    """SIGKILL of a worker of torchrun, which starts all anew: same folder, same bits."""
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    training = Training(folder / f"restarted-{number}", *RUN, "resume=auto", command=command)
    if not training.wait_for(training.saved):
        return f"never saved: {last_line(training.end()[1])}"
    os.kill(training.ranks()[number % 2], signal.SIGKILL)
    code, output, left = training.end(120)
    if code or left:
        return f"ended with {code}, left {left}: {last_line(output)}"
    return "" if state(training.folder / "run") == reference(folder) else "ended in another state"


def late(folder: Path, number: int) -> Verdict:
    """Two nodes, one process each, the second some seconds late, and a folder that only the first can name."""
    place = folder / f"late-{number}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = [item for item in RUN if not item.startswith("run_dir=")]
    nodes = []
    for node in (0, 1) if number % 2 else (1, 0):
        nodes.append(Training(place, *arguments, command=[*command, f"--node-rank={node}"], name=f"node-{node}"))
        time.sleep(3)
    ended = [node.end(120) for node in nodes]
    if codes := [code for code, *_ in ended if code]:
        return f"ended with {codes}: {last_line(ended[0][1])}"
    runs = list(place.glob("runs/*/*"))
    if len(runs) != 1:
        return f"{len(runs)} folders"
    return "" if state(runs[0]) == reference(folder) else "ended in another state"


CASES: dict[str, tuple[Callable[[Path, int], Verdict], int]] = {
    "killed": (killed, 30),
    "stopped": (stopped, 20),
    "frozen": (frozen, 6),
    "impatient": (impatient, 3),
    "restarted": (restarted, 6),
    "late": (late, 4),
}


def speeds(folder: Path, rounds: int, steps: int) -> dict[str, float]:
    """Tokens per second of one process with one thread, one with two, and two with one, of the same global batch."""
    from csv import DictReader

    found: dict[str, list[float]] = {}
    model = (
        "model=gpt-mini",
        "datamodule=chargpt",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.limit_val_batches=0",
    )
    length = (
        f"trainer.max_steps={steps}",
        "trainer.log_every_n_steps=5",
        "callbacks=none",
        "trainer.limit_val_batches=0",
    )
    for number in range(rounds):
        for name, threads, more in (
            ("1 process, 1 thread", "1", ("datamodule.batch_size=16",)),
            ("1 process, 2 threads", "2", ("datamodule.batch_size=16",)),
            ("2 processes, 1 thread each", "1", ("datamodule.batch_size=8", "trainer.devices=2")),
        ):
            place = folder / f"speed-{number}-{len(found)}-{threads}-{len(more)}"
            code, output, _ = Training(place, *model, *length, *more, "run_dir=run", OMP_NUM_THREADS=threads).end(600)
            assert code == 0, output
            with (place / "run" / "metrics.csv").open(newline="") as stream:
                rates = [float(row["tokens_per_second"]) for row in DictReader(stream) if row["tokens_per_second"]]
            found.setdefault(name, []).append(median(rates[1:] or rates))
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--only", nargs="*", choices=[*CASES, "speed"], help="these rows only")
    chosen: argparse.Namespace = options.parse_args()
    print(machine())
    names = chosen.only or [*CASES, "speed"]
    with tempfile.TemporaryDirectory() as temporary:
        folder, wrong = Path(temporary), list[str]()
        table = Table(chosen, "processes", "case", "ended as promised", "of")
        for name in (name for name in names if name in CASES):
            function, count = CASES[name]
            verdicts = [partial(function, folder)(number) for number in range(min(count, 2) if chosen.tiny else count)]
            bad = [f"{name} {number}: {text}" for number, text in enumerate(verdicts) if text]
            table.row(str(function.__doc__).splitlines()[0], len(verdicts) - len(bad), len(verdicts))
            wrong += bad
        if "speed" in names:
            table = Table(chosen, "speed", "gpt-mini, 16 sequences of 128", "tokens/s", "ratio")
            rates = speeds(folder, 1 if chosen.tiny else chosen.rounds, 20 if chosen.tiny else 100)
            for name, rate in rates.items():
                table.row(name, rate, rate / rates["1 process, 1 thread"])
        print("\n".join(["", *wrong]))


if __name__ == "__main__":
    main()
