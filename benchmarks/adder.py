"""Seconds until a model adds two-digit numbers: 99 % of 500 held-out sums.

    python -m benchmarks.adder --peers FOLDER

Ours is `python main.py experiment=adder_fast`, or with other overrides; minGPT is its project `projects/adder` as
shipped. Two clocks: from the first training step, with both scored every 50 steps and the scoring not counted; and of
whole processes, where ours trains to the end, tests and exits, and minGPT runs until it first reports 99 % (it
evaluates every 500 iterations). One round is one seed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import ROOT, Table, clock, machine, once, our_run, parser, ratio, report
from benchmarks.peers import ADDER, find, load

GOAL = 0.99
EVERY = 50  # steps between two scores


def ours(seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train as `main.py` does; the time and steps to the goal."""

    def score() -> dict[str, Any]:
        with torch.no_grad():
            sums = system.eval().evaluate(dataset[torch.arange(len(dataset))])
        system.train()
        return {"score": float(sums[2] / sums[3])}

    watch = clock(score, EVERY, lambda point: point["score"] >= GOAL)
    with tempfile.TemporaryDirectory() as folder:
        off = ["callbacks.samples=null", "trainer.limit_val_batches=0", "callbacks.early_stopping=null"]
        system, trainer, data = our_run([f"seed={seed}", *off, *overrides], folder, watch)
        dataset = data.dataset("test")
        trainer.fit(system, datamodule=data)
    return watch.points[-1]


def mingpt(seed: int, folder: Path) -> dict[str, Any]:
    """Train minGPT's project; the time and steps to the goal."""
    project = load(folder, "minGPT", ADDER)
    config = project.get_config()
    project.set_seed(seed)
    train, test = (project.AdditionDataset(config.data, split=split) for split in ("train", "test"))
    config.model.vocab_size, config.model.block_size = train.get_vocab_size(), train.get_block_size()
    model = project.GPT(config.model)
    trainer = project.Trainer(config.trainer, model, train)
    inputs, targets = (torch.stack(tensors) for tensors in zip(*(test[i] for i in range(len(test))), strict=True))
    point: dict[str, Any] = {"seconds": 0.0}
    start = time.perf_counter()

    def score(trainer: Any) -> None:
        nonlocal start
        if trainer.iter_num == 0:
            start = time.perf_counter()
        if (trainer.iter_num + 1) % EVERY == 0:
            point["seconds"] += time.perf_counter() - start
            model.eval()
            with torch.no_grad():
                right = ((model(inputs)[0].argmax(-1) == targets) | (targets == -1)).all(dim=1)
            model.train()
            point.update(step=trainer.iter_num + 1, score=right.float().mean().item())
            if point["score"] >= GOAL:
                trainer.config.max_iters = 1
            start = time.perf_counter()

    trainer.set_callback("on_batch_end", score)
    trainer.run()
    return point


def our_process(seed: int, overrides: list[str]) -> tuple[float, str]:
    """Wall seconds of the whole command, and the score that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main.py", f"run_dir={folder}/run", f"seed={seed}", *overrides]
        start = time.perf_counter()
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        spent = time.perf_counter() - start
    found = re.search(r"test exact match +([\d.]+)%", result.stderr)
    assert found is not None, result.stderr
    return spent, f"{found[1]} %"


def mingpt_process(seed: int, folder: Path) -> tuple[float, str]:
    """Wall seconds from the start of minGPT's script until it reports the goal."""
    checkout = folder.resolve() / "minGPT"
    command = [sys.executable, "-u", ADDER, f"--system.seed={seed}"]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as place:
        command.append(f"--system.work_dir='{place}'")
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            found = re.match(r"test final score.*= ([\d.]+)%", line)
            if found and float(found[1]) >= GOAL * 100:
                break
        else:
            sys.exit("minGPT's project ended early")
        spent = time.perf_counter() - start
        os.killpg(process.pid, 9)
        process.wait()
    return spent, f"{found[1]} %"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("overrides", nargs="*", default=["experiment=adder_fast"], help="of `python main.py`")
    arguments = options.parse_args()
    folder = arguments.peers
    if arguments.worker:
        warnings.simplefilter("ignore")
        sys.stdout = sys.stderr
        ours_or_theirs = arguments.worker == "ours"
        report(**(ours(arguments.seed, arguments.overrides) if ours_or_theirs else mingpt(arguments.seed, folder)))
        return

    print(machine())
    there = find(folder, "minGPT", ADDER) is not None and not arguments.tiny
    overrides = [*arguments.overrides, *["trainer.max_steps=50"] * arguments.tiny]
    table = Table(
        arguments, "adder", "seed", "from", "ours, s", "steps", "score", "minGPT, s", "steps of it", "times ours"
    )
    times: dict[str, tuple[list[float], list[float]]] = {"first step": ([], []), "process start": ([], [])}
    for seed in range(1 if arguments.tiny else arguments.rounds):
        mine = once("benchmarks.adder", "ours", "--seed", str(seed), *overrides)
        theirs = {"seconds": float("nan"), "step": "", "score": 0.0}
        if there:
            theirs = once("benchmarks.adder", "minGPT", "--seed", str(seed), "--peers", str(folder))
        rows: list[tuple[Any, ...]] = [
            ("first step", mine["seconds"], mine["step"], f"{mine['score']:.1%}", theirs["seconds"], theirs["step"])
        ]
        spent, score = our_process(seed, overrides)
        other = mingpt_process(seed, folder)[0] if there else float("nan")
        rows.append(("process start", spent, "", score, other, ""))
        for row in rows:
            table.row(seed, *row, row[4] / row[1])
            times[row[0]][0].append(row[1])
            times[row[0]][1].append(row[4])
    for name, (ours_, theirs_) in times.items():
        medians = f"ours {median(ours_):.1f} s, minGPT {median(theirs_):.1f} s (medians)"
        print(f"{name}: {medians}; within a seed, minGPT takes {ratio(ours_, theirs_)} times as long")


if __name__ == "__main__":
    main()
