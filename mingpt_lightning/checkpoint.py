"""Checkpoints of a training run: what they hold, how they are read back, and when they are written.

A checkpoint is self-contained. Beside Lightning's own entries it holds, under KEY, the library's version, the GPT's
constructor arguments, the tokenizer and the config of the run, all of it plain data: it loads with
`weights_only=True`, and no class is ever taken from it. The files themselves are the business of `storage.py`.
"""

import platform
import signal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import EarlyStopping

from mingpt_lightning import (
    __version__,
    bpe,  # noqa: F401  # registers BPETokenizer, which a checkpoint may name
    loop_state,
)
from mingpt_lightning.errors import CheckpointError, DivergedError, UserError, require_positive
from mingpt_lightning.files import check_writable
from mingpt_lightning.gpt import GPT
from mingpt_lightning.signals import STOP, Stopped
from mingpt_lightning.storage import find_corruption, load_checkpoint, write_checkpoint
from mingpt_lightning.tokenizer import Tokenizer

KEY = "mingpt_lightning"
"""Where the library's own part of a checkpoint is."""

FORMAT = 2
"""The version of what is under KEY; files of a higher one are refused."""


def metadata(
    gpt: GPT, tokenizer: Tokenizer | None, config: dict[str, Any], fingerprint: str | None, counters: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint holds under KEY. fingerprint: of the data. counters: of the LightningModule."""
    return {
        "format": FORMAT,
        "version": __version__,
        "gpt": gpt.config,
        "tokenizer": tokenizer and tokenizer.state(),
        "config": config,
        "data": fingerprint,
        "environment": {  # what the last bits of a result depend on beside the config
            "torch": str(torch.__version__),
            "pytorch_lightning": pl.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "processor": platform.machine(),
            "threads": str(torch.get_num_threads()),
        },
        **counters,
    }


class Restored(NamedTuple):
    """The objects of a checkpoint; the GPT has its weights. tokens_seen: in training."""

    gpt: GPT
    tokenizer: Tokenizer | None
    config: dict[str, Any]
    tokens_seen: int


def restore(content: dict[str, Any]) -> Restored:
    """The GPT, tokenizer and config of a checkpoint's content.

    Raises CheckpointError when its sizes don't fit its weights, before memory is allocated for them.
    """
    ours, prefix = content[KEY], "gpt."
    try:
        if not all(name.startswith(prefix) for name in content["state_dict"]):
            raise RuntimeError
        weights = {name.removeprefix(prefix): weight for name, weight in content["state_dict"].items()}
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        shape = tuple(weights["token_embedding.weight"].shape)
        sizes = ours["gpt"]
        if (shape, len(blocks)) != ((sizes["vocab_size"], sizes["n_embd"]), sizes["n_layer"]):
            raise RuntimeError
        tokenizer = Tokenizer.from_state(ours["tokenizer"]) if ours["tokenizer"] else None
        gpt = GPT(**sizes)
        gpt.load_state_dict(weights)
        return Restored(gpt, tokenizer, dict(ours["config"]), int(ours["tokens_seen"]))
    except CheckpointError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        what = "the weights do not fit the model in the checkpoint"
        raise CheckpointError(what, "checkpoint", "Use another file of the run.") from error


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best (else the last) one of a run folder.

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
            what = f"{path} is a model in Hugging Face's layout, not a run"
            raise CheckpointError(what, "checkpoint", f"Load it as a pretrained model of name {path}.")
        raise CheckpointError(f"{path} holds no checkpoints/best.ckpt or last.ckpt", "checkpoint", "Name a run folder.")
    if not path.exists():
        near = sorted(map(str, path.parent.glob("*.ckpt"))) if path.parent.is_dir() else []
        fix = f"There is: {', '.join(near[:5])}." if near else "Name a run folder or a .ckpt file."
        raise CheckpointError(f"{path} does not exist", "checkpoint", fix)
    return path


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
