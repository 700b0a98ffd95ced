"""The loss on tiny Shakespeare, by character, against seconds of training: nanoGPT's recipe for a CPU and ours.

    python -m benchmarks.shakespeare --peers FOLDER --text FILE            FILE is tiny Shakespeare
    python -m benchmarks.shakespeare --text FILE --ingredients --seeds 3   what each ingredient of the best preset gives

All are scored alike, on the whole validation split in windows that do not overlap; scoring does not count as time. The
clock starts at the first training step. nanoGPT: 4 layers, 4 heads, width 128, block 64, batch 12, 2,000 steps, as its
README says for a CPU (its model, optimizer, schedule and batches; its periodic evaluation is left out, in its favour).
"tuned" is the same with fused AdamW. Ours: the same architecture with AdamW (`SAME`: larger batches, a higher rate,
WSD), and the best preset, `experiment=shakespeare_char_fast`, also for longer.
"""

import argparse
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.common import Table, clock, machine, once, our_run, parser, report
from benchmarks.peers import Sizes, available, loss, nanogpt

BLOCK, BATCH, STEPS = 64, 12, 2000  # nanoGPT's for a CPU
SAME = [
    "datamodule.batch_size=24",
    "optimizer.lr=5e-3",
    "scheduler=wsd",
    "scheduler.decay=0.6",
    "trainer.max_steps=600",
]
PRESETS = {
    "ours, same architecture": ["experiment=shakespeare_char", *SAME],
    "ours, best preset": ["experiment=shakespeare_char_fast"],
    "ours, best preset, longer": ["experiment=shakespeare_char_fast", "trainer.max_steps=600"],
}
INGREDIENTS = {  # each left out of the best preset
    "all": [],
    "no Muon (AdamW at 4e-3)": ["optimizer=adamw", "optimizer.lr=4e-3", "optimizer.betas=[0.9,0.99]"],
    "no WSD (cosine)": ["scheduler=cosine"],
    "learned positions": ["model.position=learned"],
    "no QK-norm": ["model.qk_norm=false"],
    "tied embeddings": ["model.tie_embeddings=true"],
    "GPT-2's init": ["model.init=gpt2"],
    "biases": ["model.bias=true"],
    "with RMSNorm": ["model.norm=rmsnorm"],
    "with squared ReLU": ["model.activation=relu_squared"],
    "with a soft-cap of 15": ["model.logit_softcap=15.0"],
}


def validation(text: Path) -> Any:
    """The data of all contestants, split as nanoGPT does."""
    from projects.chargpt.datamodule import CharDataModule

    return CharDataModule(str(text), block_size=BLOCK, split=(0.9, 0.1, 0.0))


def loss_on(batches: Any, logits_of: Any) -> float:
    """Nats per character on the whole validation split."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            logits = logits_of(inputs, targets).float().flatten(0, 1)
            total += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
            tokens += int((targets != -100).sum())
    return total / tokens


def ours(overrides: list[str], text: Path, every: int) -> list[dict[str, Any]]:
    """The curve of a run of `main.py`."""
    scored = validation(text)

    def score() -> dict[str, Any]:
        system.eval()
        loss = loss_on(scored.val_dataloader(), lambda inputs, _: system(inputs))
        system.train()
        return {"loss": loss}

    watch = clock(score, every, lambda _: False)
    with tempfile.TemporaryDirectory() as folder:
        off = ["trainer.limit_val_batches=0", "callbacks.early_stopping=null", "callbacks.samples=null"]
        system, trainer, data = our_run([*overrides, f"datamodule.path={text}", *off], folder, watch)
        trainer.fit(system, datamodule=data)
    return watch.points


def nanogpt_recipe(kind: str, folder: Path, text: Path, seed: int, steps: int, every: int) -> list[dict[str, Any]]:
    """The curve of nanoGPT's recipe."""
    data = validation(text)
    tokens = np.asarray(data.dataset("train").tokens).astype(np.uint16)
    torch.manual_seed(1337 + seed)
    model = nanogpt(folder, Sizes(4, 4, 128, data.vocab_size, BLOCK), bias=False)
    optimizer = model.configure_optimizers(1e-1, 1e-3, (0.9, 0.99), "cpu")
    if kind == "tuned":
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False
    spent, points, start = 0.0, [], time.perf_counter()
    for step in range(steps):
        warm, share = (step + 1) / 101, (step - 100) / max(1, steps - 100)
        rate = 1e-3 * warm if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        places = torch.randint(len(tokens) - BLOCK, (BATCH,))
        inputs = torch.stack([torch.from_numpy(tokens[i : i + BLOCK].astype(np.int64)) for i in places])
        targets = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + BLOCK].astype(np.int64)) for i in places])
        mean_loss = loss(model, inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        mean_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean_loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            spent += time.perf_counter() - start
            model.eval()
            value = loss_on(data.val_dataloader(), lambda inputs, targets: model(inputs, targets.clamp(min=0))[0])
            model.train()
            points.append({"step": step + 1, "seconds": spent, "loss": value})
            start = time.perf_counter()
    return points


def at(points: list[dict[str, Any]], seconds: float) -> float:
    """The loss of a curve at a time, interpolated between points; NaN outside of the curve."""
    times = [point["seconds"] for point in points]
    return float(np.interp(seconds, times, [point["loss"] for point in points], left=math.nan, right=math.nan))


def reached(points: list[dict[str, Any]], loss: float) -> float:
    """The time at which a curve reaches a loss, interpolated between points; NaN if never."""
    before = None
    for point in points:
        if point["loss"] <= loss:
            if before is None:
                return float(point["seconds"])
            share = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return float(before["seconds"] + share * (point["seconds"] - before["seconds"]))
        before = point
    return math.nan


def compare(options: argparse.Namespace) -> None:
    """The loss curve of every contestant, for each seed."""
    names = available(options.peers, options.contestants)
    table = Table(
        options,
        "shakespeare",
        "seed",
        "contestant",
        "15 s",
        "30 s",
        "60 s",
        "nanoGPT's seconds",
        "at the end",
        "seconds",
        "until nanoGPT's loss, s",
        "share of its time",
    )
    for seed in range(options.seeds):
        common = ["--text", str(options.text), "--peers", str(options.peers), "--seed", str(seed)]
        common += ["--tiny"] * options.tiny
        yardstick = None
        for name in names:
            points = once("benchmarks.shakespeare", name, *common)["points"]
            yardstick = yardstick or points[-1]
            until = reached(points, yardstick["loss"])
            values = [at(points, seconds) for seconds in (15, 30, 60, yardstick["seconds"])]
            last = points[-1]
            table.row(
                seed,
                name,
                *(f"{value:.3f}" for value in values),
                f"{last['loss']:.4f}",
                last["seconds"],
                until,
                until / yardstick["seconds"],
                points=points,
            )


def ingredients(options: argparse.Namespace) -> None:
    """Ablation: loss and time of the best preset without each of its ingredients, or with one more, at equal steps."""
    table = Table(options, "ingredients", "preset", "loss", "by seed", "seconds", "times those of all")
    limit = None
    for name, overrides in INGREDIENTS.items():
        curves = []
        for seed in range(options.seeds):
            given = [*PRESETS["ours, best preset"], f"seed={seed}", *overrides]
            given += [f"trainer.max_steps={options.steps}"] * (options.steps is not None)
            common = ["--text", str(options.text), "--overrides", *given]
            curves.append(once("benchmarks.shakespeare", "ours with overrides", *common)["points"])
        ends = [points[-1]["loss"] for points in curves]
        times = [points[-1]["seconds"] for points in curves]
        limit = limit or mean(times)
        table.row(name, mean(ends), " ".join(f"{end:.3f}" for end in ends), mean(times), mean(times) / limit)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--text", type=Path, required=True, help="tiny Shakespeare")
    options.add_argument("--seeds", type=int, default=1)
    names = ["nanoGPT", "nanoGPT tuned", *PRESETS]
    options.add_argument("--contestants", nargs="+", default=names, choices=names, metavar="NAME")
    options.add_argument("--ingredients", action="store_true")
    options.add_argument("--steps", type=int, help="of the ingredients' runs; those of the preset otherwise")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("--overrides", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = options.parse_args()
    arguments.text = arguments.text.resolve()
    if arguments.worker:
        warnings.simplefilter("ignore")
        sys.stdout = sys.stderr
        short = ["trainer.max_steps=20"] * arguments.tiny
        every = 5 if arguments.tiny else 20
        if arguments.worker == "ours with overrides":
            points = ours(arguments.overrides, arguments.text, 10**9)
        elif arguments.worker in PRESETS:
            given = [*PRESETS[arguments.worker], f"seed={arguments.seed}", *short]
            points = ours(given, arguments.text, every)
        else:
            folder, steps = arguments.peers, 20 if arguments.tiny else STEPS
            points = nanogpt_recipe(arguments.worker.split()[-1], folder, arguments.text, arguments.seed, steps, 100)
        report(points=points)
        return
    print(machine())
    (ingredients if arguments.ingredients else compare)(arguments)


if __name__ == "__main__":
    main()
