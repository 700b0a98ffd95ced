"""What happens around training: progress, samples, a clean stop, and metrics.csv."""

import os
import signal
import time
import warnings
from typing import Any, cast

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

from mingpt_lightning.language_model import LanguageModel

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Everything that isn't generated text goes to standard error."""


class Progress(pl.Callback):
    """A progress bar with loss, exact match and speed, and a line for each validation.

    Without a terminal, the lines only. The loss is read from the device when the bar is drawn, at most every
    `refresh_seconds`, never at every step.
    """

    def __init__(self, refresh_seconds: float = 0.25):
        self.refresh_seconds = refresh_seconds
        self.bar: RichProgress | None = None
        self.exact_match = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self.bar = RichProgress(*columns, console=console, auto_refresh=False, transient=True)
            self.task = self.bar.add_task("", total=cast(LanguageModel, pl_module).total_steps())
            self.bar.start()
        self.start_window(trainer, pl_module)

    def start_window(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Speed is measured from here; what comes between windows (validation, saving) doesn't count."""
        self.window = time.perf_counter(), cast(LanguageModel, pl_module).tokens_seen
        self.drawn = time.perf_counter()

    def speed(self, system: LanguageModel) -> str:
        """Tokens per second since the last validation."""
        start, tokens = self.window
        return f"{(system.tokens_seen - tokens) / max(time.perf_counter() - start, 1e-9):,.0f} tokens/s"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.bar is None or time.perf_counter() - self.drawn < self.refresh_seconds:
            return
        self.drawn = time.perf_counter()
        system = cast(LanguageModel, pl_module)
        text = f"steps  loss {system.train_loss:.4f}{self.exact_match}  {self.speed(system)}"
        self.bar.update(self.task, completed=trainer.global_step, description=text, refresh=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.window_speed = self.speed(cast(LanguageModel, pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        system, metrics = cast(LanguageModel, pl_module), trainer.callback_metrics
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if "val/exact_match" in metrics:
            self.exact_match = f"  exact match {metrics['val/exact_match']:.1%}"
        losses = f"loss {system.train_loss:.4f}  val loss {metrics['val/loss']:.4f}"
        console.print(f"step {trainer.global_step:>6,}  {losses}{self.exact_match}  {self.window_speed}")
        self.start_window(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Samples(pl.Callback):
    """Shows what the model makes of it, after every n-th validation: answers to problems, or a piece of text."""

    def __init__(self, every_n_validations: int = 5, n: int = 3, max_new_tokens: int = 100):
        self.every_n_validations = every_n_validations
        self.n = n
        self.max_new_tokens = max_new_tokens
        self.validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        system, datamodule = cast(LanguageModel, pl_module), trainer.datamodule  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self.validations += 1
        if self.validations % self.every_n_validations:
            return
        if system.tokenizer is None or datamodule is None:
            return
        if system.tokenizer.answer_length is not None:
            batch = datamodule.dataset("val")[torch.arange(min(self.n, len(datamodule.dataset("val"))))]
            for text, right in system.solve(batch):
                console.print(f"  {text}  {'right' if right else 'wrong'}", style="dim", markup=False)
        else:
            text = system.complete("", self.max_new_tokens, temperature=1.0, seed=self.validations)[0]
            console.print("  " + text.replace("\n", "\n  "), style="dim", markup=False)


class StopOnSignal(pl.Callback):
    """Ctrl-C and SIGTERM end training after the step under way, so that everything is saved; a second one at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def stop(number: int, frame: Any) -> None:
            if self.received is not None:
                os._exit(128 + number)  # files are renamed into place when whole, so none is harmed
            self.received = number
            trainer.should_stop = True

        self.previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}


class CSVLogger(pl.loggers.CSVLogger):
    """Lightning's CSVLogger, writing metrics.csv straight into `save_dir`."""

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="", version="")

    @property
    def experiment(self) -> Any:
        with warnings.catch_warnings():  # the run folder isn't empty, and that is as it should be
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            return super().experiment
