"""Callbacks and loggers around training: progress, samples, metrics.csv."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from mingpt_lightning.console import console
from mingpt_lightning.errors import require_positive
from mingpt_lightning.files import atomic_write
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.loop_state import total_steps
from mingpt_lightning.sharding import ShardedStrategy


class Progress(pl.Callback):
    """A progress bar with loss, exact match and speed, and a line for each validation.

    Without a terminal, the lines only. The loss is read from the device only when the bar is drawn, at most every
    `refresh_seconds`.
    """

    def __init__(self, refresh_seconds: float = 0.25):
        self.refresh_seconds = refresh_seconds
        self.bar: ProgressBar | None = None
        self.exact_match = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self.bar = ProgressBar(*columns, console=console, auto_refresh=False, transient=True)
            self.task = self.bar.add_task("", total=total_steps(trainer), completed=trainer.global_step)
            self.bar.start()
        self.start_clock(pl_module)

    def start_clock(self, pl_module: pl.LightningModule) -> None:
        """Measure the speed from here on; validation and saving don't count."""
        self.since = time.perf_counter(), cast(LanguageModel, pl_module).tokens_seen
        self.drawn = time.perf_counter()

    def speed(self, system: LanguageModel) -> str:
        """Tokens per second since the last validation."""
        start, tokens = self.since
        return f"{(system.tokens_seen - tokens) / max(time.perf_counter() - start, 1e-9):,.0f} tokens/s"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.bar is None or time.perf_counter() - self.drawn < self.refresh_seconds:
            return
        self.drawn = time.perf_counter()
        system = cast(LanguageModel, pl_module)
        loss = "" if system.train_loss is None else f"  loss {system.train_loss:.4f}"
        text = f"steps{loss}{self.exact_match}  {self.speed(system)}"
        self.bar.update(self.task, completed=trainer.global_step, description=text, refresh=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.last_speed = self.speed(cast(LanguageModel, pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        system, metrics = cast(LanguageModel, pl_module), trainer.callback_metrics
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if "val/exact_match" in metrics:
            self.exact_match = f"  exact match {metrics['val/exact_match']:.1%}"
        loss = "" if system.train_loss is None else f"loss {system.train_loss:.4f}  "  # None: just resumed
        loss += f"val loss {metrics['val/loss']:.4f}"
        console.print(f"step {trainer.global_step:>6,}  {loss}{self.exact_match}  {self.last_speed}")
        self.start_clock(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop_bar()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop_bar()

    def stop_bar(self) -> None:
        """Take the bar away, and show the cursor again."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Samples(pl.Callback):
    """Prints samples after every n-th validation: answers to problems, or a piece of text."""

    def __init__(self, every_n_validations: int = 5, n: int = 3, max_new_tokens: int = 100):
        require_positive(every_n_validations=every_n_validations, n=n, max_new_tokens=max_new_tokens)
        self.every_n_validations = every_n_validations
        self.n = n
        self.max_new_tokens = max_new_tokens
        self.validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        system, datamodule = cast(LanguageModel, pl_module), trainer.datamodule  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validations += 1
        if self.validations % self.every_n_validations:
            return
        if system.tokenizer is None or datamodule is None:
            return
        if not trainer.is_global_zero and not isinstance(trainer.strategy, ShardedStrategy):
            return  # where weights are divided, all processes take part in what one of them prints
        if system.tokenizer.answer_length is not None:
            batch = datamodule.sequences("val")[torch.arange(min(self.n, len(datamodule.sequences("val"))))]
            lines = [f"{text}  {'right' if right else 'wrong'}" for text, right in system.solve(batch)]
        else:
            lines = system.complete("", self.max_new_tokens, temperature=1.0, seed=self.validations)[0].split("\n")
        if not trainer.is_global_zero:
            return
        console.print("\n".join(f"  {line}" for line in lines), style="dim", markup=False)
        for logger in trainer.loggers:
            log_text(logger, "samples", "\n".join(lines), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]


def log_text(logger: Any, name: str, text: str, step: int) -> None:
    """Log text where a logger can: TensorBoard, Weights & Biases, MLflow and Comet."""
    match type(logger).__name__:
        case "TensorBoardLogger":
            logger.experiment.add_text(name, f"```\n{text}\n```", step)
        case "WandbLogger":
            logger.log_text(name, columns=["step", "text"], data=[[step, text]])
        case "MLFlowLogger":
            logger.experiment.log_text(logger.run_id, text, f"{name}/{step}.txt")
        case "CometLogger":
            logger.experiment.log_text(text, step=step, metadata={"name": name})


class CSVLogger(pl.loggers.logger.Logger):
    """Writes metrics.csv into `save_dir`: one row for each logged step, with all that is known then.

    So the metrics of a validation are in the row of its step and in those after it, until the next validation. Steps
    are counted from 1, as on the screen; Lightning counts them from 0. Rows are appended every `flush_every` of them
    and with each checkpoint. A resumed run continues the file, without the rows after its checkpoint.
    """

    FIRST = ("step", "tokens", "seconds", "train/loss", "val/loss", "test/loss")
    """The columns that come first; the others follow in alphabetical order."""

    def __init__(self, save_dir: str, flush_every: int = 100):
        super().__init__()
        self.file = Path(save_dir) / "metrics.csv"
        self.flush_every = flush_every
        self.columns: list[str] = []  # of the file
        self.saved_step = 0  # of the last row in it
        self.rows: list[dict[str, Any]] = []  # that are not in it yet
        self.validation: dict[str, Any] = {}  # the metrics of the newest one

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config is in .hydra/."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: getattr(value, "item", lambda value=value: value)() for name, value in metrics.items()}
        values.pop("epoch", None)  # steps say more
        self.validation |= {name: value for name, value in values.items() if name.startswith("val/")}
        number = (step or 0) + 1
        row = next((row for row in reversed(self.rows) if row["step"] == number), None)
        if row is None:
            row = {"step": number}
            self.rows.append(row)
        row |= self.validation | values
        if len(self.rows) > self.flush_every + 1:
            newest, self.rows = self.rows[-2:], self.rows[:-2]  # of which more may become known
            self.save()
            self.rows = newest

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        names = set(self.columns).union(*self.rows)
        if names == set(self.columns) and min(row["step"] for row in self.rows) > self.saved_step:
            with self.file.open("a", newline="") as stream:
                csv.DictWriter(stream, self.columns).writerows(self.rows)
        else:  # there are new columns, or more is known of a row that is in the file
            table: dict[int, dict[str, Any]] = {}
            for row in [*self.read_rows(), *self.rows]:
                known = {name: value for name, value in row.items() if value != ""}
                table[int(row["step"])] = table.get(int(row["step"]), {}) | known
            names = names.union(*table.values())
            first = [name for name in self.FIRST if name in names]
            self.columns = first + sorted(names.difference(first))
            self.write_rows([table[step] for step in sorted(table)])
        self.saved_step = max(self.saved_step, *(row["step"] for row in self.rows))
        self.rows = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which an earlier process logged."""
        if self.file.exists():
            rows = self.read_rows()
            since = step if rows and "tokens" in rows[0] else step - 1  # before that column, steps counted from 0
            rows = [row for row in rows if int(row["step"]) <= since]
            self.columns = list(rows[0]) if rows else []
            self.saved_step = int(rows[-1]["step"]) if rows else 0
            last = rows[-1] if rows else {}
            self.validation = {name: value for name, value in last.items() if name.startswith("val/") and value}
            self.write_rows(rows)

    def read_rows(self) -> list[dict[str, Any]]:
        """The rows of the file, without one that a killed process has half written."""
        text = self.file.read_text() if self.file.exists() else ""
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file atomically."""
        with atomic_write(self.file) as part, part.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns)
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)
