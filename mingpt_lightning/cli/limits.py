"""The limits of a Trainer against the data and the machine: Lightning ignores some contradictions, or fails late."""

import math
import os
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.plugins.environments import LightningEnvironment

from mingpt_lightning.datamodule import SequenceDataModule, Split
from mingpt_lightning.errors import UserError


def check_limits(trainer: pl.Trainer, datamodule: SequenceDataModule, *splits: Split) -> None:
    """Raise UserError for limits that contradict each other, or that leave nothing of a split."""
    settings: Any = trainer
    for split in ("train", "val") if "train" in splits else splits:  # without a test split, there is no test
        if getattr(trainer, f"limit_{split}_batches") and not len(datamodule.sequences(split)):
            fix = "Give more data, or a larger split."
            if (split, len(splits)) == ("val", 3):
                fix += " To train without validation, use trainer.limit_val_batches=0."
            raise UserError(f"there is no sequence in the {split} split", "split", fix)
    counts = {split: batches_of(trainer, datamodule, split) for split in splits}
    batches = counts.get("train", math.inf)
    accumulated, interval = settings.accumulate_grad_batches, settings.val_check_interval
    if accumulated > batches:
        what = f"trainer.accumulate_grad_batches={accumulated:,} is more than the {batches:,} batches of an epoch"
        raise UserError(what, "trainer.accumulate_grad_batches", f"Use {batches:,} or less.")
    if settings.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > batches:
        what = f"trainer.val_check_interval={interval:,} is more than the {batches:,} batches of an epoch"
        fix = "Lower it, or count across epochs with trainer.check_val_every_n_epoch=null."
        raise UserError(what, "trainer.val_check_interval", fix)
    for unit in ("steps", "epochs"):
        least, most = getattr(settings, f"min_{unit}"), getattr(settings, f"max_{unit}")
        if least and most is not None and 0 < most < least:
            what = f"trainer.min_{unit}={least:,} is more than trainer.max_{unit}={most:,}"
            raise UserError(what, f"trainer.min_{unit}", "Lower it, or raise the other.")


def batches_of(trainer: pl.Trainer, datamodule: SequenceDataModule, split: Split) -> float:
    """The batches of a split that are used. Raises UserError for a fraction of them that is less than one batch."""
    name, limit = f"limit_{split}_batches", getattr(trainer, f"limit_{split}_batches")
    if not limit or not len(datamodule.sequences(split)):
        return 0
    try:
        length = len(getattr(datamodule, f"{split}_dataloader")())
    except TypeError:  # a loader of one's own that doesn't know
        return limit if isinstance(limit, int) else math.inf
    if isinstance(limit, int):
        return min(limit, length)
    if length and not int(limit * length):
        if limit == trainer.overfit_batches:  # type: ignore[attr-defined]
            name = "overfit_batches"
        what = f"trainer.{name}={limit:g} of the {length:,} batch{'es' * (length > 1)} of the {split} split is none"
        fix = f"Use {1 / length:.2g} or more, or a number of batches such as 1."
        raise UserError(what, f"trainer.{name}", fix)
    return int(limit * length)


def check_machine(trainer: pl.Trainer) -> None:
    """Raise UserError for processes that this machine can't hold, or that nobody would start, and for no time."""
    processes, cores = trainer.num_devices, os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and processes > max(2, cores):
        what = f"trainer.devices={processes} are more processes than the {cores} CPU cores of this machine"
        raise UserError(what, "trainer.devices", f"Use {max(2, cores)} or fewer.")
    alone = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
    if trainer.num_nodes > 1 and alone and "MASTER_ADDR" not in os.environ:
        what = f"trainer.num_nodes={trainer.num_nodes} needs something that starts a process on each machine"
        raise UserError(what, "trainer.num_nodes", "Start it by SLURM or torchrun, or set MASTER_ADDR and NODE_RANK.")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            raise UserError("no time is left to train", "trainer.max_time", "Give more than zero.")
