"""Averaged weights (Lightning's WeightAveraging): what a validation sees is what is saved as the best.

Lightning puts the averages in place for a validation, and the trained weights back after it.
"""

import contextlib
from collections.abc import Iterator

import pytorch_lightning as pl
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging


def averages(trainer: pl.Trainer) -> list[WeightAveraging]:
    """The callbacks that average weights at each step."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


def ends_with_averages(trainer: pl.Trainer) -> bool:
    """Whether training has ended with weights that no validation has seen: SWA puts them in place at its end."""
    return any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]


@contextlib.contextmanager
def validated_weights(trainer: pl.Trainer, system: pl.LightningModule) -> Iterator[None]:
    """Between two steps, put the weights in place that a validation sees."""
    for callback in averages(trainer):
        callback.on_validation_epoch_start(trainer, system)
    try:
        yield
    finally:
        trained_weights(trainer, system)


def trained_weights(trainer: pl.Trainer, system: pl.LightningModule) -> None:
    """Put the trained weights back, within or after a validation that was interrupted."""
    for callback in averages(trainer):
        callback.on_validation_epoch_end(trainer, system)


def keep_buffers(trainer: pl.Trainer) -> None:
    """Copy buffers instead of averaging them: those of a GPT are constants, which an average would round."""
    for callback in averages(trainer):
        assert callback._average_model is not None
        callback._average_model.use_buffers = False
