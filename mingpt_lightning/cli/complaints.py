"""What Lightning, and the objects that a config describes, raise about their arguments: one line that names the key."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mingpt_lightning.errors import UserError, resource_error


def complaint(error: Exception, where: str) -> UserError:
    """One line for what an object of a section of the config raises; it names the settings that the line is about."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        return UserError(message, where, "Install what is missing, or choose another.")
    given = [item.lstrip("+") for item in HydraConfig.get().overrides.task if item.lstrip("+").startswith(f"{where}.")]
    pairs = [(item, *item.partition("=")[::2]) for item in given]
    named = [item for item, key, _ in pairs if key.rpartition(".")[2] in message]
    values = [(value.strip("'\""), item) for item, _, value in pairs]
    named = named or [item for value, item in sorted(values, key=lambda pair: -len(pair[0])) if value in message][:1]
    return UserError(message, ", ".join(named) or where, "Correct its arguments.")


@contextlib.contextmanager
def complaints(trainer: pl.Trainer, cfg: DictConfig) -> Iterator[None]:
    """Within this, what Lightning calls a misconfiguration, and what a configured object raises before the first batch,
    is a UserError."""
    loop = trainer.fit_loop.epoch_loop.batch_progress.total
    before = loop.ready
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or resource_error(error):
            raise
        where = raised_in(error, trainer, cfg) if loop.ready == before else None
        if where is None and not isinstance(error, MisconfigurationException):
            raise
        raise complaint(error, where or "trainer") from error


def raised_in(error: Exception, trainer: pl.Trainer, cfg: DictConfig) -> str | None:
    """The section of the config whose object has raised an error: a callback or logger."""
    frames = [frame.frame.f_locals.get("self") for frame in inspect.getinnerframes(error.__traceback__)]  # type: ignore[arg-type]
    configured: list[Any] = [*trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    for owner in reversed(frames):
        if any(owner is item for item in configured):
            for group in ("callbacks", "logger"):
                for name, node in (cfg.get(group) or {}).items():
                    if isinstance(node, DictConfig) and get_object(node._target_) is type(owner):
                        return f"{group}.{name!s}"
    return None
