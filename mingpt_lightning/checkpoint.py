"""Checkpoints of a training run: how they are read back, and when they are written.

A checkpoint is self-contained. Beside Lightning's own entries it holds, under KEY, what `restore.metadata` lists, as
plain data: it loads with `weights_only=True`, and no class is ever taken from it. The files themselves are the business
of `storage.py`.
"""

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer

from mingpt_lightning import loop_state
from mingpt_lightning.averages import averages, trained_weights, validated_weights
from mingpt_lightning.errors import CheckpointError, DivergedError, UserError, require_positive
from mingpt_lightning.files import check_writable
from mingpt_lightning.gguf_file import is_gguf
from mingpt_lightning.objective import Direction, direction
from mingpt_lightning.restore import FORMAT
from mingpt_lightning.signals import STOP, Stopped
from mingpt_lightning.storage import KEY, MANIFEST, find_checkpoint, find_corruption, load_checkpoint, write_checkpoint


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; `path` as for `find_checkpoint`, `mmap` as for `load_checkpoint`.

    Raises CheckpointError when the file is damaged, holds more than plain data, or is not one of this library's.
    """
    file = find_checkpoint(path)
    alone = "safetensors" if file.suffix == ".safetensors" else "GGUF" if is_gguf(file) else None
    content = {} if alone else load_checkpoint(file, mmap)
    ours = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in content:
        origin = f"weights alone ({alone})" if alone else guess_origin(content)
        what = f"{file} is not a checkpoint of mingpt_lightning but {origin}"
        fix = "Give a file that this library wrote. GPT.from_pretrained, task=export and model.name= read others."
        raise CheckpointError(what, "checkpoint", fix)
    if ours.get("format", 1) > FORMAT:
        version = f"format {ours['format']}, of version {ours.get('version')}"
        what = f"{file} has {version}; this version reads up to {FORMAT}"
        raise CheckpointError(what, "checkpoint", "Update mingpt_lightning.")
    return content


def is_own(file: Path) -> bool:
    """Whether a file is a checkpoint of this library, or a damaged one; reads little of it."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch's old format, or a file that can't be read
        return (file.parent / MANIFEST).is_file()
    return isinstance(content, dict) and KEY in content


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
    """Has Lightning write and read checkpoints through `storage.py`; what last.ckpt held becomes previous.ckpt.

    folder: of `Checkpoint`. Lightning's own callbacks may save elsewhere, in folders that don't exist yet.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        file = Path(path)
        if KEY not in checkpoint:  # bare weights, which a process that was spawned hands to the main one
            super().save_checkpoint(checkpoint, path)
            return
        if file.parent != self.folder:
            check_writable(file.parent, 0, "dirpath")
        previous = file.with_name("previous.ckpt") if file == self.folder / "last.ckpt" else None
        write_checkpoint(checkpoint, file, checkpoint["global_step"], previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        if Path(path).name == ".temp.ckpt":  # see above
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(path)


class Checkpoint(pl.callbacks.Checkpoint):
    """Keeps three files in `dirpath`, and ends training cleanly on a stop signal (see `signals.py`).

    best.ckpt: the weights with the best `monitor` so far, as they were validated: the averages, where a callback
    averages them. `mode`, min or max, follows from the metric where it is one of this library's.
    last.ckpt: everything needed to resume exactly, written every `every_n_train_steps` optimizer steps and when
    training ends or is stopped. previous.ckpt: what last.ckpt was before.

    Raises an error before the first step where `dirpath` can't be written or has no room for them, and ResourceError
    when one can't be written later.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str = "val/loss",
        mode: Direction | None = None,
        every_n_train_steps: int = 1000,
    ):
        require_positive(every_n_train_steps=every_n_train_steps)
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = check_mode(monitor, mode)
        self.every_n_train_steps = every_n_train_steps
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.newest_metrics: dict[str, float] = {}  # of the last validation
        self.step = 0  # optimizer steps so far
        self.accumulating = False  # batches were trained since then, whose gradients no checkpoint holds
        self.saved_step: int | None = None  # of last.ckpt
        self.saved_waits: list[int] = []  # of each EarlyStopping, in last.ckpt
        self.patience: list[int] = []  # of each EarlyStopping, as it is configured now

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO(self.dirpath)
        self.patience = [stopper.patience for stopper in early_stoppers(trainer)]
        if stage == "fit" and trainer.is_global_zero:
            weights = sum(weight.numel() * weight.element_size() for weight in pl_module.parameters())
            check_writable(self.dirpath, 11 * weights, "dirpath")  # three with two moments each, two best ones
        for other in trainer.checkpoint_callbacks:
            if isinstance(other, ModelCheckpoint) and other.save_last and other.dirpath == str(self.dirpath.absolute()):
                what = f"ModelCheckpoint would write last.ckpt into {self.dirpath}, where another one is"
                raise UserError(what, "save_last", "Leave out save_last, or give it a dirpath of its own.")

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
        for stopper, patience in zip(early_stoppers(trainer), self.patience, strict=True):
            stopper.patience = patience  # Lightning would take the one in the checkpoint
            trainer.should_stop |= bool(has_ended(stopper, self.newest_metrics))  # as without the interruption
        self.saved_waits = [stopper.wait_count for stopper in early_stoppers(trainer)]

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
        self.newest_metrics = metrics
        with validated_weights(trainer, pl_module):
            self.save_if_best(trainer, metrics)
        if self.step % self.every_n_train_steps == 0 and not self.accumulating:
            self.save(trainer)

    def save_if_best(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Write best.ckpt, if these are the best metrics of a validation so far."""
        score = -metrics[self.monitor] if self.mode == "max" else metrics[self.monitor]
        if self.best_score is None or score < self.best_score:
            self.best_score, self.best_metrics = score, metrics
            trainer.save_checkpoint(self.dirpath / "best.ckpt", weights_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.done and averages(trainer):  # before the averages replace the weights that were trained
            self.save_at_end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_at_end(trainer)
        STOP.waits = False
        if STOP.received is not None:
            raise Stopped(STOP.received)

    def save_at_end(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt, unless it is there already."""
        waits = [stopper.wait_count for stopper in early_stoppers(trainer)]
        if (self.saved_step, self.saved_waits) != (trainer.global_step, waits):
            self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped) and trainer.validating:
            trained_weights(trainer, pl_module)
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
        self.saved_step = trainer.global_step
        self.saved_waits = [stopper.wait_count for stopper in early_stoppers(trainer)]
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
        return {name: getattr(self, name) for name in ("best_score", "best_metrics", "newest_metrics", "saved_step")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state_dict.get(name, getattr(self, name)))  # earlier versions had fewer


def check_mode(monitor: str, mode: str | None) -> Direction:
    """The direction of a metric. Raises UserError for a mode that contradicts it, or that nobody says."""
    known = direction(monitor)
    if mode not in ("min", "max", None):
        raise UserError(f"mode={mode} is not known", "mode", "Use min or max.")
    if mode is None and known is None:
        raise UserError(f"nothing says whether more or less of {monitor} is better", "mode", "Give mode=min or max.")
    if known is not None and mode not in (known, None):
        what = f"mode={mode} keeps the worst {monitor}, of which {'less' if known == 'min' else 'more'} is better"
        raise UserError(what, "mode", "Leave it out: it follows from the metric.")
    return "max" if (mode or known) == "max" else "min"


def early_stoppers(trainer: pl.Trainer) -> list[EarlyStopping]:
    """The callbacks that may end training early."""
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]


def has_ended(stopper: EarlyStopping, metrics: dict[str, float]) -> str:
    """Why early stopping ends training after a validation with these metrics; empty where it doesn't."""
    name, value = stopper.monitor, metrics.get(stopper.monitor)
    if stopper.wait_count >= stopper.patience:
        return f"{name} did not improve for {stopper.wait_count} validations"
    for threshold, sign in ((stopper.stopping_threshold, 1), (stopper.divergence_threshold, -1)):
        if value is None or threshold is None:
            continue
        if stopper.monitor_op(torch.tensor(sign * value), sign * threshold):
            return f"{name} reached {value:.4g}, beyond {threshold:g}"
    return ""


def why_it_ended(trainer: pl.Trainer) -> str:
    """What ended a training: a limit of the Trainer, early stopping with its reason, or a callback."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    reasons = [reason for stopper in early_stoppers(trainer) if (reason := has_ended(stopper, metrics))]
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return "max_steps"
    if reasons:
        return f"early stopping: {reasons[0]}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return "max_time"
    return "a callback" if trainer.should_stop else "max_epochs"
