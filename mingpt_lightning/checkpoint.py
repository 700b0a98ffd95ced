"""Checkpoints of a training: which are written when, and what is in them.

A checkpoint stands alone. Beside Lightning's own entries it holds, under "mingpt_lightning", the version, the GPT's
constructor arguments, the tokenizer and the config of the run, all of it plain data: it loads with
`weights_only=True`, and no class is ever taken from it. How files are written and read is in `storage.py`, what a run
needs to go on in `resume.py`.
"""

import signal
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import EarlyStopping

from mingpt_lightning.errors import CheckpointError, UserError, require_positive
from mingpt_lightning.resume import KEY, at_batch_end, validation_is_due
from mingpt_lightning.signals import STOP, Stopped
from mingpt_lightning.storage import check_room, damage, load_checkpoint, write_checkpoint

FORMAT = 2
"""Of what is under KEY; files of a higher number are refused."""


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
    content = load_checkpoint(file)
    ours = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in content:
        what = f"{file} is not a checkpoint of mingpt_lightning but {describe(content)}"
        fix = "Give a file that this library wrote; a folder in Hugging Face's layout loads with model=gpt2-pretrained."
        raise CheckpointError(what, "checkpoint", fix)
    if ours.get("format", 1) > FORMAT:
        what = (
            f"{file} has format {ours['format']}, of version {ours.get('version')}; this version reads up to {FORMAT}"
        )
        raise CheckpointError(what, "checkpoint", "Update mingpt_lightning.")
    return content


def describe(content: Any) -> str:
    """What a file that isn't ours seems to be."""
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}"
    if {"model", "model_args", "iter_num"} <= set(content):
        return "one of nanoGPT"
    if "pytorch-lightning_version" in content:
        return "one of another Lightning project"
    if content and all(hasattr(value, "shape") for value in content.values()):
        return "bare weights (a state_dict)"
    return "something else"


class SafeCheckpointIO(TorchCheckpointIO):
    """Lets Lightning write and read checkpoints as `storage.py` does; what last.ckpt held becomes previous.ckpt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        file = Path(path)
        previous = file.with_name("previous.ckpt") if file.name == "last.ckpt" else None
        write_checkpoint(checkpoint, file, checkpoint["global_step"], previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(path)


class Checkpoint(pl.callbacks.Checkpoint):
    """Keeps three files in `dirpath`, and ends training cleanly when the process is asked to stop (see `signals.py`).

    best.ckpt: the weights with the best `monitor` so far (`mode`: min or max), written after a validation.
    last.ckpt: everything that training needs to go on exactly, written every `every_n_train_steps` optimizer steps and
    when training ends or is stopped. previous.ckpt: what last.ckpt was before.

    Raises ResourceError before the first step where `dirpath` has no room for them, and when one can't be written.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int = 1000,
    ):
        require_positive(every_n_train_steps=every_n_train_steps)
        if mode not in ("min", "max"):
            raise UserError(f"mode={mode} is not known", "callbacks.checkpoint.mode", "Use min or max.")
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = mode
        self.every_n_train_steps = every_n_train_steps
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.step = 0  # optimizer steps that are trained
        self.in_window = False  # whether batches were trained since then, whose gradients no checkpoint holds
        self.saved_step: int | None = None  # those in last.ckpt
        self.pending = False  # whether last.ckpt was written before a validation that was due
        self.ended_early = False  # before max_steps and max_epochs, by a callback

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if stage == "fit" and trainer.is_global_zero:
            weights = sum(weight.numel() * weight.element_size() for weight in pl_module.parameters())
            check_room(self.dirpath, 11 * weights)  # three with two moments each, two best ones

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(self.saved_step or 0)  # None: a process before this one didn't get to save anything
        if self.best_score is not None and damage(self.dirpath / "best.ckpt"):
            self.best_score, self.best_metrics = None, {}  # so that the next one takes its place

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        STOP.install()  # Lightning has put a handler of its own before ours
        STOP.waits = True
        if self.pending:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        stoppers = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
        trainer.should_stop |= self.ended_early and bool(stoppers)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.in_window = trainer.global_step == self.step
        if self.in_window:
            return
        self.step = trainer.global_step
        self.stop_if_asked(trainer)
        if self.step % self.every_n_train_steps == 0 and not validation_is_due(trainer):
            self.save(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.in_window:
            self.stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.monitor not in metrics:
            what = f"there is no metric {self.monitor} to find the best checkpoint by"
            raise UserError(what, "callbacks.checkpoint.monitor", f"Choose one of: {', '.join(sorted(metrics))}.")
        score = metrics[self.monitor] if self.mode == "min" else -metrics[self.monitor]
        if self.best_score is None or score < self.best_score:
            self.best_score, self.best_metrics = score, metrics
            trainer.save_checkpoint(self.dirpath / "best.ckpt", weights_only=True)
        if self.step % self.every_n_train_steps == 0 and not self.in_window:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (self.saved_step, self.ended_early) != (trainer.global_step, trainer.should_stop):
            self.save(trainer)
        STOP.waits = False
        if STOP.received is not None:
            raise Stopped(STOP.received)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped) and STOP.waits and self.saved_step != trainer.global_step:
            self.save(trainer, pending=validation_is_due(trainer))
        STOP.waits = False

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Raise Stopped between two steps, if any process of the training was asked to stop.

        After the last step training ends by itself: it is the validation's turn, and a run that is over has no other.
        """
        asked = STOP.received is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and STOP.waits and trainer.global_step != trainer.max_steps:
            raise Stopped(STOP.received or signal.SIGTERM)

    def save(self, trainer: pl.Trainer, pending: bool = False) -> None:
        """Write last.ckpt, after all that was logged so far. pending: a validation that was due has not been."""
        for logger in trainer.loggers:
            logger.save()
        self.saved_step, self.pending, self.ended_early = trainer.global_step, pending, trainer.should_stop
        trainer.save_checkpoint(self.dirpath / "last.ckpt", weights_only=False)

    def newest(self) -> Path | None:
        """The newest file that this training can go on from."""
        files = (self.dirpath / name for name in ("last.ckpt", "previous.ckpt"))
        newest = next((file for file in files if file.exists()), None)
        inside = newest is not None and newest.is_absolute() and newest.is_relative_to(Path.cwd())
        return newest.relative_to(Path.cwd()) if newest is not None and inside else newest

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        at_batch_end(checkpoint["loops"]["fit_loop"], trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_score": self.best_score,
            "best_metrics": self.best_metrics,
            "saved_step": self.saved_step,
            "pending": self.pending,
            "ended_early": self.ended_early,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
