"""What Lightning and our own callbacks add to a training step, in milliseconds.

    python -m benchmarks.overhead

The same model (so small that a step takes a millisecond) and the same batches: a plain loop of forward, backward,
clipping, AdamW and schedule; Lightning's barebones Trainer; ours as `python main.py` has it, with its callbacks and
its logger; the same with all callbacks and the logger off; and Trainer's defaults (progress bar, checkpoints, logger,
a torch DataLoader), with a loss that is logged at every step. Validation is off in all of them. Each contestant has a
process of its own and trains `--steps` steps a turn.
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

from benchmarks.common import Table, Worker, machine, parser, report, serve

CONTESTANTS = ["plain loop", "ours", "ours, all off", "Lightning barebones", "Lightning defaults"]
BATCH = 16


def make() -> tuple[Any, Any]:
    """Sums, and a model so small that nothing hides what is added."""
    from mingpt_lightning import GPT
    from projects.adder.datamodule import AdderDataModule

    torch.manual_seed(0)
    data = AdderDataModule(batch_size=BATCH)
    return data, GPT(data.vocab_size, data.block_size, n_layer=1, n_head=2, n_embd=16)


def plain_loop(steps: int) -> None:
    """No Lightning at all."""
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

    data, gpt = make()
    folder = tempfile.mkdtemp()
    optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=True)

    class Turns(pl.Callback):
        """Reports after the first steps, and from then on after as many as a turn has; waits in between."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step % steps == 0:
                report(seconds=time.perf_counter() - self.start)
                trainer.should_stop = not sys.stdin.readline()
                self.start = time.perf_counter()

        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

    class LogsAll(LanguageModel):
        """Logs as the tutorials do: at every step, onto the bar."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True)
            return loss

    system = (LogsAll if name == "Lightning defaults" else LanguageModel)(gpt, optimizer, cosine, data.tokenizer)
    common: dict[str, Any] = {
        "max_steps": 10**6,
        "accelerator": "cpu",
        "callbacks": [Turns()],
        "default_root_dir": folder,
    }
    loader: Any = data.train_dataloader()
    if name == "Lightning defaults":
        dataset = data.dataset("train")
        pairs = torch.utils.data.TensorDataset(*dataset[torch.arange(len(dataset))])
        loader = torch.utils.data.DataLoader(pairs, batch_size=BATCH, shuffle=True)
        trainer = pl.Trainer(gradient_clip_val=1.0, **common)
    elif name == "Lightning barebones":
        trainer = pl.Trainer(barebones=True, **common)
    else:
        trainer = our_trainer(name, system, folder, common)
    trainer.fit(system, loader)


def our_trainer(name: str, system: Any, folder: str, common: dict[str, Any]) -> Any:
    """The Trainer that the configs describe, without validation."""
    import pytorch_lightning as pl
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from mingpt_lightning.config import CONFIG_DIR

    off = ["callbacks=none", "logger=none"] if name == "ours, all off" else []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("config", [f"run_dir={folder}", "trainer=cpu", *off])
    hooks = [instantiate(node) for node in no_hydra(cfg.callbacks, folder).values() if node]
    loggers = [instantiate(node) for node in no_hydra(cfg.logger, folder).values() if node]
    settings = dict(no_hydra(cfg.trainer, folder).items())
    settings |= {"precision": "32-true", "limit_val_batches": 0, "enable_checkpointing": bool(hooks)}
    settings |= {**common, "callbacks": [*hooks, *common["callbacks"]], "logger": loggers or False}
    settings.pop("_target_")
    return pl.Trainer(**settings)


def no_hydra(section: Any, folder: str) -> Any:
    """A section whose folder is not that of a run."""
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(section).replace("${hydra:runtime.output_dir}", folder)
    return OmegaConf.create(text.replace("${optimized_metric}", "val/loss"))


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
        torch.set_num_threads(1)  # as ours has for a model of this width
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
