"""Checkpoints of a training run: how they are read back, and when they are written.

A checkpoint is self-contained. Beside Lightning's own entries it holds, under KEY, what `restore.metadata` lists, as
plain data: it loads with `weights_only=True`, and no class is ever taken from it. The files themselves are the business
of `storage.py`.
"""

import signal
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import EarlyStopping

from mingpt_lightning import loop_state
from mingpt_lightning.errors import CheckpointError, DivergedError, UserError, require_positive
from mingpt_lightning.files import check_writable
from mingpt_lightning.restore import FORMAT
from mingpt_lightning.signals import STOP, Stopped
from mingpt_lightning.storage import KEY, find_checkpoint, find_corruption, load_checkpoint, write_checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; `path` as for `find_checkpoint`.

    Raises CheckpointError when the file is damaged, holds more than plain data, or is not one of this library's.
    """
    file = find_checkpoint(path)
    content = load_checkpoint(file)
    ours = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in content:
        what = f"{file} is not a checkpoint of mingpt_lightning but {guess_origin(content)}"
        fix = "Give a file that this library wrote; a folder in Hugging Face's layout loads as a pretrained model."
        raise CheckpointError(what, "checkpoint", fix)
    if ours.get("format", 1) > FORMAT:
        version = f"format {ours['format']}, of version {ours.get('version')}"
        what = f"{file} has {version}; this version reads up to {FORMAT}"
        raise CheckpointError(what, "checkpoint", "Update mingpt_lightning.")
    return content


def guess_origin(content: Any) -> str:
    """What a foreign checkpoint seems to be."""
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
    """Has Lightning write and read checkpoints through `storage.py`; what last.ckpt held becomes previous.ckpt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        file = Path(path)
        previous = file.with_name("previous.ckpt") if file.name == "last.ckpt" else None
        write_checkpoint(checkpoint, file, checkpoint["global_step"], previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(path)


class Checkpoint(pl.callbacks.Checkpoint):
    """Keeps three files in `dirpath`, and ends training cleanly on a stop signal (see `signals.py`).

    best.ckpt: the weights with the best `monitor` so far (`mode`: min or max), written after a validation.
    last.ckpt: everything needed to resume exactly, written every `every_n_train_steps` optimizer steps and when
    training ends or is stopped. previous.ckpt: what last.ckpt was before.

    Raises an error before the first step where `dirpath` can't be written or has no room for them, and ResourceError
    when one can't be written later.
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
            raise UserError(f"mode={mode} is not known", "mode", "Use min or max.")
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = mode
        self.every_n_train_steps = every_n_train_steps
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.step = 0  # optimizer steps so far
        self.accumulating = False  # batches were trained since then, whose gradients no checkpoint holds
        self.saved_step: int | None = None  # of last.ckpt
        self.ended_early = False  # before max_steps and max_epochs, by a callback

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if stage == "fit" and trainer.is_global_zero:
            weights = sum(weight.numel() * weight.element_size() for weight in pl_module.parameters())
            check_writable(self.dirpath, 11 * weights, "dirpath")  # three with two moments each, two best ones

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(self.saved_step or 0)  # None: an earlier process was killed before its first save
        if self.best_score is not None and find_corruption(self.dirpath / "best.ckpt"):
            self.best_score, self.best_metrics = None, {}  # so that the next one replaces it

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        STOP.install()  # Lightning has put a handler of its own before ours
        STOP.waits = True
        validated = getattr(pl_module, "validated_step", self.step) == self.step
        if self.step and not validated and loop_state.validation_is_due(trainer):  # the run was stopped before it
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        stoppers = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
        trainer.should_stop |= self.ended_early and bool(stoppers)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.accumulating = trainer.global_step == self.step
        if self.accumulating:
            return
        self.step = trainer.global_step
        self.stop_if_asked(trainer)
        if self.step % self.every_n_train_steps == 0 and not loop_state.validation_is_due(trainer):
            self.save(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.accumulating:
            self.stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.monitor not in metrics:
            what = f"there is no metric {self.monitor} to find the best checkpoint by"
            raise UserError(what, "monitor", f"Choose one of: {', '.join(sorted(metrics))}.")
        score = metrics[self.monitor] if self.mode == "min" else -metrics[self.monitor]
        if self.best_score is None or score < self.best_score:
            self.best_score, self.best_metrics = score, metrics
            trainer.save_checkpoint(self.dirpath / "best.ckpt", weights_only=True)
        if self.step % self.every_n_train_steps == 0 and not self.accumulating:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (self.saved_step, self.ended_early) != (trainer.global_step, trainer.should_stop):
            self.save(trainer)
        STOP.waits = False
        if STOP.received is not None:
            raise Stopped(STOP.received)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped) and STOP.waits and self.saved_step != trainer.global_step:
            self.save(trainer)
        if isinstance(exception, DivergedError):
            exception.fix = f"The last good checkpoint is {self.newest() or 'none'}. {exception.fix}"
        STOP.waits = False

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Raise Stopped between two steps, if any process of the training has received a stop signal.

        After the last step training ends by itself: what is left is its validation, which would not run otherwise.
        """
        asked = STOP.received is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and STOP.waits and trainer.global_step != trainer.max_steps:
            raise Stopped(STOP.received or signal.SIGTERM)

    def save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt, after everything that was logged so far."""
        for logger in trainer.loggers:
            logger.save()
        self.saved_step, self.ended_early = trainer.global_step, trainer.should_stop
        trainer.save_checkpoint(self.dirpath / "last.ckpt", weights_only=False)

    def newest(self) -> Path | None:
        """The newest file that this training can resume from."""
        files = (self.dirpath / name for name in ("last.ckpt", "previous.ckpt"))
        newest = next((file for file in files if file.exists()), None)
        inside = newest is not None and newest.is_absolute() and newest.is_relative_to(Path.cwd())
        return newest.relative_to(Path.cwd()) if newest is not None and inside else newest

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop_state.normalize(checkpoint["loops"]["fit_loop"], trainer)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_score", "best_metrics", "saved_step", "ended_early")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state_dict[name])
