"""Lightning's fit loop: its state in a checkpoint, its length, and the step under which it logs.

The state is written as at the end of a batch, whichever hook saves it: Lightning's counters depend on the hook, and
some of these states lose a validation or a step on loading. All else that a run needs to resume exactly is weights,
optimizer and counters: the order of the data and all randomness are functions of the seed and of how much was trained.
"""

import math
from typing import Any

import pytorch_lightning as pl

from mingpt_lightning.errors import UserError


def normalize(loops: dict[str, Any], trainer: pl.Trainer) -> None:
    """Set the state of the fit loop to the one at the end of the newest batch.

    It is computed from two numbers: the batches that were trained, and the batches of an epoch. Before the end of the
    batch's hooks, Lightning doesn't count the batch as completed, nor its epoch as processed.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    batches: int = epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
    length = trainer.num_training_batches
    epochs = 0 if math.isinf(length) else max(0, batches - 1) // int(length)

    def count(n: int) -> dict[str, int]:
        return {"ready": n, "started": n, "processed": n, "completed": n - 1}

    current = batches - epochs * (0 if math.isinf(length) else int(length))
    epoch = {"ready": epochs + 1, "started": epochs + 1, "processed": epochs, "completed": epochs}
    zero = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    loops["epoch_loop.batch_progress"] = {
        "total": count(batches),
        "current": count(current),
        "is_last_batch": current == length,
    }
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step - 1
    loops["epoch_loop.val_loop.batch_progress"] = {"total": zero, "current": dict(zero), "is_last_batch": False}
    loops["epoch_progress"] = {"total": epoch, "current": dict(epoch)}


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the batch that was trained last, or is running."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def log_step(trainer: pl.Trainer, step: int) -> int:
    """Have Lightning log under an optimizer step, counted from 0, from now on; returns the step before."""
    loop = trainer.fit_loop.epoch_loop
    before, loop._batches_that_stepped = loop._batches_that_stepped, step
    return before


def total_steps(trainer: pl.Trainer, batches: int | None = None) -> int:
    """Optimizer steps in the whole training, from the Trainer's limits alone.

    batches: of an epoch; None: as the training loader says. Lightning's own estimate creates that loader too early,
    which breaks resuming (PL #20550). Raises UserError where there is no limit, or one in epochs without a datamodule.
    """
    limits, datamodule = [], getattr(trainer, "datamodule", None)
    if trainer.max_steps > 0:
        limits.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and datamodule is not None:
        batches = len(datamodule.train_dataloader()) if batches is None else batches
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    elif trainer.max_epochs != -1 and math.isfinite(steps := trainer.estimated_stepping_batches) and steps > 0:
        limits.append(int(steps))  # of a plain loader
    if not limits:
        fix = "Set max_steps, or max_epochs with a loader that knows its length."
        raise UserError("the schedule needs to know when training ends", "max_steps", fix)
    return min(limits)
