"""How long whole commands take from start to end: Python, its imports, and the first step of ours and the peers'.

    python -m benchmarks.startup --peers FOLDER        FOLDER holds checkouts named minGPT and nanoGPT
    python -m benchmarks.startup --lean PYTHON         a Python of an environment without transformers and matplotlib

Commands take turns, round after round, after a warm-up turn that reads files from disk. Ours is training for one step,
with everything that a run does besides: building, validation, test, samples, checkpoint. minGPT imports its adder and
does one iteration of its Trainer, without test or checkpoint; nanoGPT estimates its loss on one batch of each split,
and does two iterations, as its script can't do fewer.

Lightning imports transformers and matplotlib where they are installed, so what it must cost is measured without them:
our limit is 1.15 times that import, and 1.5 seconds. Last, which packages our command spends its imports on, by `python
-X importtime`, which makes them slower: what the imports of a package take with all that they import in turn, and the
package's own files alone.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.common import ROOT, Table, machine, parser, ratio, seconds
from benchmarks.peers import ADDER, find

FOLDER = "FOLDER"  # in an argument: a new folder for what the command writes
OURS = "ours, one step"
LEAN = "import torch, pytorch_lightning, lean"
LIGHTNING = "import torch, pytorch_lightning"
ONE_STEP = ["main.py", "trainer.max_steps=1", "callbacks.early_stopping=null", "logger=none", f"run_dir={FOLDER}"]
MINGPT = """
from adder import AdditionDataset, get_config
from mingpt.model import GPT
from mingpt.trainer import Trainer

config = get_config()
config.trainer.max_iters, config.trainer.num_workers = 1, 0
data = AdditionDataset(config.data, split="train")
config.model.vocab_size, config.model.block_size = data.get_vocab_size(), data.get_block_size()
Trainer(config.trainer, GPT(config.model), data).run()
"""
NANOGPT = """train.py config/train_shakespeare_char.py --device=cpu --compile=False --max_iters=1 --eval_iters=1
--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128"""
IMPORT = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)")


class Command(NamedTuple):
    arguments: list[str]
    directory: Path = ROOT  # where it runs
    status: int = 0  # that it ends with
    path: str = ""  # its PYTHONPATH


def run(command: Command, temporary: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises CalledProcessError if its exit code is another than `status`."""
    folder = tempfile.mkdtemp(dir=temporary)
    arguments = [argument.replace(FOLDER, folder) for argument in command.arguments]
    environment = {**os.environ, "PYTHONPATH": command.path}
    process = subprocess.run(
        arguments, cwd=command.directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if process.returncode != command.status:
        raise subprocess.CalledProcessError(process.returncode, arguments, process.stdout, process.stderr)
    return process


def works(name: str, command: Command, temporary: str) -> bool:
    """Whether a command ends as expected; if not, print what it said."""
    try:
        run(command, temporary)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["said nothing"]
        print(f"\n{name} is left out: it ended with {error.returncode}: {said[-1]}", flush=True)
        return False
    return True


def python(*arguments: str) -> Command:
    return Command([sys.executable, *arguments])


def own_commands(lean: str | None, temporary: Path) -> dict[str, Command]:
    """The commands that need no peers; imports run outside of the repository."""
    code = {"nothing": "pass", "import torch": "import torch", LIGHTNING: LIGHTNING}
    commands = {name: Command([sys.executable, "-c", text], temporary) for name, text in code.items()}
    if lean is not None:
        commands[LEAN] = Command([lean, "-c", LIGHTNING], temporary)
    commands["ours, --help"] = python("main.py", "--help")
    commands["ours, a typo"] = python("main.py", "n_layr=3")._replace(status=2)
    commands[OURS] = python(*ONE_STEP)
    return commands


def peer_commands(peers: Path) -> dict[str, Command]:
    """The first step of the peers that are there."""
    commands = {}
    adder = find(peers, "minGPT", ADDER)
    if adder is not None:
        path = os.pathsep.join(map(str, (adder.parent, adder.parents[2])))
        commands["minGPT, one step"] = Command([sys.executable, "-c", MINGPT], adder.parent, path=path)
    train, data = (find(peers, "nanoGPT", file) for file in ("train.py", "data/shakespeare_char/train.bin"))
    if train is not None and data is not None:
        arguments = [sys.executable, *NANOGPT.split(), f"--out_dir={FOLDER}"]
        commands["nanoGPT, two steps"] = Command(arguments, train.parent)
    return commands


def import_times(report: str) -> dict[str, tuple[int, int]]:
    """Microseconds of each package in what `-X importtime` writes: with what it imports, and its own files alone."""
    times: dict[str, tuple[int, int]] = {}
    around: list[str] = []  # the packages whose import a line is part of
    for match in reversed(list(IMPORT.finditer(report))):  # an import comes after those that are part of it
        own, cumulative, indent, name = match.groups()
        package, depth = name.split(".")[0], len(indent) // 2
        around = around[:depth] + [""] * (depth - len(around))
        total, alone = times.get(package, (0, 0))
        times[package] = (total if package in around else total + int(cumulative), alone + int(own))
        around.append(package)
    return times


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--lean", metavar="PYTHON", help="a Python with Lightning, without transformers, matplotlib")
    arguments = options.parse_args()
    lean = arguments.lean and shutil.which(arguments.lean)
    if arguments.lean and not lean:
        options.error(f"--lean {arguments.lean} is not a program")
    print(machine())
    if not lean:
        print("\nno --lean PYTHON: Lightning without transformers and matplotlib, and our limit, are left out")

    with tempfile.TemporaryDirectory() as temporary:
        commands = own_commands(lean and os.path.abspath(lean), Path(temporary))
        if arguments.tiny:
            commands = dict(list(commands.items())[:3])
        else:
            commands |= peer_commands(arguments.peers)
        commands = {name: command for name, command in commands.items() if works(name, command, temporary)}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(1 if arguments.tiny else arguments.rounds):
            for name, command in commands.items():
                times[name].append(seconds(partial(run, command, temporary)))
        last = python("-X", "importtime", *(["main.py", "--help"] if arguments.tiny else ONE_STEP))
        report = run(last, temporary).stderr

    table = Table(arguments, "startup", "command", "seconds", "smallest", "largest", "times as long as ours")
    for name, values in times.items():
        against = ratio(times[OURS], values) if OURS in times else ""
        table.row(name, median(values), min(values), max(values), against, turns=values)
    if LEAN in times and OURS in times:
        limits = [1.15 * value + 1.5 for value in times[LEAN]]
        met = median(ours - limit for ours, limit in zip(times[OURS], limits, strict=True)) <= 0
        table = Table(arguments, "startup limit", "limit", "seconds", "ours", "met")
        table.row("1.15 x lean import + 1.5 s", median(limits), median(times[OURS]), "yes" if met else "no")
    packages = import_times(report)
    what = "imports of ours, --help" if arguments.tiny else "imports of ours, one step"
    table = Table(arguments, "startup imports", what, "own and children, ms", "own, ms")
    for package in sorted(packages, key=lambda name: packages[name], reverse=True)[:10]:
        total, own = packages[package]
        table.row(package, total / 1000, own / 1000)


if __name__ == "__main__":
    main()
