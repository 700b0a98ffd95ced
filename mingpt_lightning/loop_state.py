"""The state of Lightning's fit loop in a checkpoint, written as at the end of a batch whichever hook saves it.

Lightning's counters depend on the hook in which they are saved, and some of these states lose a validation or a step on
loading. All else that a run needs to resume exactly is weights, optimizer and counters: the order of the data and all
randomness are functions of the seed and of how much was trained.
"""

import math
from typing import Any

import pytorch_lightning as pl


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
