"""Checkpoint files: writing the best and the last, and reading one back.

A checkpoint stands alone. Beside Lightning's own entries it holds, under "mingpt_lightning", the version, the GPT's
constructor arguments, the tokenizer and the config of the run, all of it plain data: it loads with
`weights_only=True`, and no class is ever taken from it.
"""

import os
import pickle
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError

KEY = "mingpt_lightning"
"""Where our part of a checkpoint is."""


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a user means: the file itself, or the best (else the last) one of a run folder.

    Raises CheckpointError when there is none, naming what is there instead.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path} is a URL", "checkpoint", "Download the file and give its path.")
    path = Path(path)
    if path.is_dir():
        for file in (path / folder / name for folder in ("checkpoints", "") for name in ("best.ckpt", "last.ckpt")):
            if file.is_file():
                return file
        if (path / "config.json").is_file():
            fix = f"Use model=gpt2-pretrained model.name={path}."
            raise CheckpointError(f"{path} is a model in Hugging Face's layout", "checkpoint", fix)
        raise CheckpointError(f"{path} holds no checkpoints/best.ckpt or last.ckpt", "checkpoint", "Name a run folder.")
    if not path.exists():
        near = sorted(map(str, path.parent.glob("*.ckpt"))) if path.parent.is_dir() else []
        fix = f"There is: {', '.join(near[:5])}." if near else "Name a run folder or a .ckpt file."
        raise CheckpointError(f"{path} does not exist", "checkpoint", fix)
    return path


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU; `path` as for `find_checkpoint`.

    Raises CheckpointError when the file is damaged, holds more than plain data, or is not one of ours.
    """
    file = find_checkpoint(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        what = f"{file} cannot be read: it is damaged, or not a checkpoint"
        raise CheckpointError(what, "checkpoint", "Take another file of the run.") from error
    if not isinstance(content, dict) or KEY not in content:
        fix = "Give a file that this library wrote."
        raise CheckpointError(f"{file} is not a checkpoint of mingpt_lightning", "checkpoint", fix)
    return content


class Checkpoint(pl.callbacks.Checkpoint):
    """Keeps two files in `dirpath`: `best.ckpt` and `last.ckpt`.

    best.ckpt: the weights with the best `monitor` so far (`mode`: min or max), written after a validation.
    last.ckpt: everything, written every `every_n_train_steps` optimizer steps and when training ends or is stopped.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int = 1000,
    ):
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = mode
        self.every_n_train_steps = every_n_train_steps
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.saved_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            try:
                self.dirpath.mkdir(parents=True, exist_ok=True)
                (self.dirpath / ".writable").touch()
                (self.dirpath / ".writable").unlink()
            except OSError as error:
                raise unwritable(self.dirpath, error) from error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        due = trainer.global_step % self.every_n_train_steps == 0
        if due and trainer.global_step != self.saved_step:  # once, not at every batch of an accumulation window
            self.saved_step = trainer.global_step
            self.save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.monitor not in metrics:
            what = f"there is no metric {self.monitor} to find the best checkpoint by"
            raise UserError(what, "callbacks.checkpoint.monitor", f"Choose one of: {', '.join(sorted(metrics))}.")
        score = metrics[self.monitor] if self.mode == "min" else -metrics[self.monitor]
        if self.best_score is None or score < self.best_score:
            self.best_score, self.best_metrics = score, metrics
            self.save(trainer, "best.ckpt", weights_only=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, "last.ckpt")

    def save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        """Write beside the target, then rename: a reader never sees half a file."""
        part = self.dirpath / f"{name}.part"
        try:
            trainer.save_checkpoint(part, weights_only=weights_only)
            if trainer.is_global_zero:
                os.replace(part, self.dirpath / name)
        except OSError as error:
            raise unwritable(self.dirpath / name, error) from error

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_metrics = state_dict["best_score"], state_dict["best_metrics"]


def unwritable(path: Path, error: OSError) -> ResourceError:
    """The error for a place that cannot be written."""
    return ResourceError(f"cannot write {path}: {error.strerror or error}", "run_dir", "Choose another run_dir=.")
