"""Overhead per training step of Lightning and of our callbacks, in milliseconds.

    python -m benchmarks.overhead

The same model (so small that a step takes a millisecond) and the same batches: a plain loop of forward, backward,
clipping, AdamW and schedule; Lightning's barebones Trainer; ours as `python main.py` has it, with its callbacks and its
logger; the same with all callbacks and the logger off; and Trainer's defaults (progress bar, checkpoints, logger, a
torch DataLoader), with a loss that is logged at every step. Validation is off everywhere. Each contestant has its own
process and trains `--steps` steps a turn.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.common import Table, Worker, machine, our_run, parser, report, serve

CONTESTANTS = ["plain loop", "ours", "ours, all off", "Lightning barebones", "Lightning defaults"]
BATCH = 16
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16}
OURS = [
    *(f"model.{name}={size}" for name, size in SIZES.items()),
    *("trainer=cpu", f"trainer.max_steps={10**6}", "trainer.limit_val_batches=0", f"datamodule.batch_size={BATCH}"),
]


def make() -> tuple[Any, Any]:
    """The adder's data, and a model so small that the overhead shows."""
    from mingpt_lightning import GPT
    from projects.adder.datamodule import AdderDataModule

    torch.manual_seed(0)
    data = AdderDataModule(batch_size=BATCH)
    return data, GPT(data.vocab_size, data.block_size, **SIZES)


def plain_loop(steps: int) -> None:
    """Plain PyTorch, without Lightning."""
    from torch.nn import functional as F

    from mingpt_lightning.optim import cosine, parameter_groups

    data, gpt = make()
    optimizer = torch.optim.AdamW(parameter_groups(gpt), lr=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, 10**6))

    def forever() -> Any:
        while True:
            yield from data.train_dataloader()

    batches = forever()

    def turn() -> dict[str, Any]:
        for _ in range(steps):
            inputs, targets = next(batches)
            loss = F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return {}

    turn()
    serve(turn)


def with_trainer(name: str, steps: int) -> None:
    """A Trainer that pauses after every turn."""
    import pytorch_lightning as pl

    from mingpt_lightning import LanguageModel
    from mingpt_lightning.optim import cosine

    class Turns(pl.Callback):
        """Reports after each turn of `steps` steps, and waits for the next."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step % steps == 0:
                report(seconds=time.perf_counter() - self.start)
                trainer.should_stop = not sys.stdin.readline()
                self.start = time.perf_counter()

        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

    class LogsAll(LanguageModel):
        """Logs as Lightning's tutorials do: every step, onto the progress bar."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True)
            return loss

    if name.startswith("ours"):
        off = ["callbacks=none", "logger=none"] if name == "ours, all off" else []
        system, trainer, data = our_run([*OURS, *off], tempfile.mkdtemp(), Turns())
        trainer.fit(system, data.train_dataloader())
        return
    data, gpt = make()
    optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=True)
    common: dict[str, Any] = {"max_steps": 10**6, "accelerator": "cpu", "callbacks": [Turns()]}
    if name == "Lightning barebones":
        trainer = pl.Trainer(barebones=True, **common)
        trainer.fit(LanguageModel(gpt, optimizer, cosine, data.tokenizer), data.train_dataloader())
        return
    dataset = data.dataset("train")
    pairs = torch.utils.data.TensorDataset(*dataset[torch.arange(len(dataset))])
    trainer = pl.Trainer(gradient_clip_val=1.0, default_root_dir=tempfile.mkdtemp(), **common)
    loader = torch.utils.data.DataLoader(pairs, batch_size=BATCH, shuffle=True)
    trainer.fit(LogsAll(gpt, optimizer, cosine, data.tokenizer), loader)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=500, help="optimizer steps in a turn")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.tiny:
        arguments.steps, arguments.rounds = 20, 1
    if arguments.worker:
        warnings.simplefilter("ignore")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        sys.stdout = sys.stderr
        torch.set_num_threads(1)  # what ours chooses for a model of this width
        if arguments.worker == "plain loop":
            plain_loop(arguments.steps)
        else:
            with_trainer(arguments.worker, arguments.steps)
        return

    print(machine())
    workers = {name: Worker("benchmarks.overhead", name, "--steps", str(arguments.steps)) for name in CONTESTANTS}
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            times[name].append(worker()["seconds"] / arguments.steps * 1000)
    for worker in workers.values():
        worker.stop()
    plain, defaults = times["plain loop"], times["Lightning defaults"]
    table = Table(arguments, "overhead", "contestant", "ms a step", "above the plain loop", "of Lightning's defaults")
    for name, values in times.items():
        above = [mine - base for mine, base in zip(values, plain, strict=True)]
        most = [other - base for other, base in zip(defaults, plain, strict=True)]
        share = median(mine / other for mine, other in zip(above, most, strict=True))
        spread = f"{median(above):.2f} ({min(above):.2f} to {max(above):.2f})"
        table.row(name, median(values), spread, f"{share:.0%}", all=values)


if __name__ == "__main__":
    main()
