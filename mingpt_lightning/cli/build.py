"""From a section of the config to the object that it describes.

The only place that calls Hydra's `instantiate`; what fails in there is the config's fault, so it ends in one line.
"""

import contextlib
import inspect
import os
import sys
from importlib import import_module
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from mingpt_lightning.checkpoint import Checkpoint, check_mode
from mingpt_lightning.cli.annotations import check_values
from mingpt_lightning.cli.complaints import complaint
from mingpt_lightning.cli.config import locate
from mingpt_lightning.cli.limits import check_machine
from mingpt_lightning.cli.overrides import literal
from mingpt_lightning.cli.processes import accumulation, fit_launcher
from mingpt_lightning.cli.trust import OWN_CODE, trusted
from mingpt_lightning.cli.watch import use_launcher
from mingpt_lightning.device import fast_dtype, keep_memory, set_threads
from mingpt_lightning.errors import UserError, nearest, resource_error
from mingpt_lightning.sharding import PRECISIONS, ShardedStrategy, check_callbacks

ALLOWED = (
    *("mingpt_lightning.", "projects.", "torch.optim.", "pytorch_lightning.Trainer"),
    *(f"pytorch_lightning.{part}." for part in ("callbacks", "loggers", "profilers", "strategies", "plugins")),
    "lightning_fabric.plugins.",  # where some of these are defined
)
"""What a `_target_` may be, beside what is `trusted`. Nothing else is imported or called."""

WITHOUT_EFFECT = {
    "limit_predict_batches": "there is no task that predicts",
    "model_registry": "it uploads the checkpoints of a callback of Lightning's, and these are others",
}
"""Arguments of the Trainer that nothing here would read."""


def check_targets(node: Any, where: str) -> None:
    """Raise UserError for a `_target_`, at any depth, that isn't a class or function of ALLOWED or of trusted modules.

    What the name leads to must be defined there too: an allowed module has imported others, which may do anything.
    """
    if isinstance(node, dict):
        if (target := node.get("_target_")) is not None:
            allowed = (*ALLOWED, *trusted())
            others = ", ".join(name.rstrip(".") for name in ALLOWED[2:])
            known = f"{OWN_CODE}; of others, a _target_ may be in {others}."
            if not isinstance(target, str) or not f"{target}.".startswith(allowed):
                raise UserError(f"{target} is not allowed", f"{where}._target_", known)
            try:
                found = get_object(target)
            except Exception as error:  # whatever importing it raises
                what = f"{target} cannot be found: {' '.join(str(error).split())[:200]}"
                raise UserError(what, f"{where}._target_", "Correct it.") from error
            home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
            if not callable(found) or not home.startswith((*allowed, "pytorch_lightning.trainer.trainer.Trainer")):
                raise UserError(f"{target} is not allowed: it is {home}", f"{where}._target_", known)
        for name, value in node.items():
            check_targets(value, f"{where}.{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            check_targets(value, f"{where}[{number}]")


def target_of(node: DictConfig, where: str) -> Any:
    """The class or function that a section of the config names, if it may."""
    check_targets(OmegaConf.to_container(node, resolve=True), where)
    return get_object(node["_target_"])


def leads_to(target: Any) -> str:
    """The class or function that a `_target_` names, by the module that defines it; imports no module but our own."""
    module, _, name = str(target).rpartition(".")
    if module.startswith("mingpt_lightning."):
        with contextlib.suppress(ImportError):
            import_module(module)
    found = getattr(sys.modules.get(module), name, None)
    return f"{found.__module__}.{found.__qualname__}" if callable(found) else str(target)


def build(node: Any, where: str, **arguments: Any) -> Any:
    """The object that a section of the config describes: its `_target_`, called with its keys and `arguments`.

    `_partial_: true` gives a partial. where: the section, for errors. Raises UserError when the target can't be found
    or doesn't take the arguments; an error about one of the parameters names it as a key of the section.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{where} names no class", where, f"Choose one with {where}=NAME, or give it a _target_.")
    plain = OmegaConf.to_container(node, resolve=True)
    check_targets(plain, where)
    check_parameters(node, where, arguments)
    try:
        plain = literal(literal(plain))  # Hydra resolves twice, and text that looks like an interpolation is text
        factory = instantiate(plain, _convert_="all", _partial_=True)
        return factory if node.get("_partial_") else factory(**arguments)
    except UserError as error:
        raise locate(error, node, where) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise locate(error.__cause__, node, where) from error
        raise UserError(str(error).splitlines()[0], where, "Check its _target_ and arguments.") from error
    except Exception as error:  # whatever the target raises about its arguments: they come from the config
        if known_error := resource_error(error):
            raise known_error from error
        raise complaint(error, where) from error


def check_parameters(node: DictConfig, where: str, arguments: dict[str, Any]) -> None:
    """Raise UserError for a key that the target has no parameter for, or a required parameter without a key."""
    keys = {str(key) for key in node if key not in ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")}
    try:
        signature = inspect.signature(get_object(node._target_))
    except ValueError:  # a builtin
        return
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    if not open_ended and (unknown := sorted(keys - signature.parameters.keys())):
        known = sorted(signature.parameters.keys() - arguments.keys())
        raise UserError(f"unknown key '{where}.{unknown[0]}'", where, nearest(unknown[0], known))
    values: Any = OmegaConf.to_container(node, resolve=True)
    check_values(get_object(node._target_), {key: values[key] for key in keys - arguments.keys()}, where)
    if node.get("_partial_") or "_args_" in node:
        return
    try:
        signature.bind(**(dict.fromkeys(keys) | arguments))
    except TypeError as error:
        raise UserError(f"{where}: {error}", where, "Correct its arguments.") from error


def build_each(section: DictConfig, where: str) -> list[Any]:
    """The objects of a section of named ones; those set to null are left out."""
    for name, node in section.items():
        if isinstance(node, DictConfig) and "_target_" not in node:
            others = [str(other) for other in section if other != name]
            raise UserError(f"unknown key '{where}.{name!s}', which names no class", where, nearest(str(name), others))
    return [build(node, f"{where}.{name!s}") for name, node in section.items() if node is not None]


def build_callbacks(section: DictConfig, metrics: list[str], logging: bool) -> list[pl.Callback]:
    """The callbacks, none of which may monitor a metric that doesn't exist, or in the wrong direction."""
    section = section.copy()
    OmegaConf.set_struct(section, False)
    for name, node in section.items():
        monitor = node.get("monitor") if isinstance(node, DictConfig) else None
        if monitor is not None and monitor not in metrics:
            where = f"callbacks.{name!s}.monitor"
            raise UserError(f"there is no metric '{monitor}'", where, nearest(str(monitor), metrics))
        if monitor is not None and "mode" in inspect.signature(target_of(node, f"callbacks.{name!s}")).parameters:
            try:
                node.mode = check_mode(monitor, node.get("mode"))
            except UserError as error:
                raise locate(error, node, f"callbacks.{name!s}") from error
    callbacks = build_each(section, "callbacks")
    for callback in callbacks:
        if isinstance(callback, Checkpoint) and not callback.monitor.startswith("val/"):
            what = f"{callback.monitor} is not known where the best checkpoint is chosen"
            fix = f"Choose one of: {', '.join(metric for metric in metrics if metric.startswith('val/'))}."
            raise UserError(what, "callbacks.checkpoint.monitor", fix)
    if not logging:  # Lightning refuses to monitor the learning rate without a logger
        callbacks = [item for item in callbacks if not isinstance(item, pl.callbacks.LearningRateMonitor)]
    return callbacks


def build_trainer(
    node: DictConfig, n_embd: int, batch_size: int = 1, global_batch_size: int | None = None, **arguments: Any
) -> pl.Trainer:
    """The Trainer, and threads and memory as it wants them; `precision: auto` is what is fast on the device.

    batch_size: sequences in a batch of each process. global_batch_size: in an optimizer step of all, if that is given.
    """
    settings = node.copy()
    fit_launcher(settings)
    accumulated = settings.get("accumulate_grad_batches", 1)
    if global_batch_size is not None:
        settings.accumulate_grad_batches = 1
    if settings.enable_checkpointing is None:  # Lightning would add a checkpoint callback of its own
        settings.enable_checkpointing = any(isinstance(c, pl.callbacks.Checkpoint) for c in arguments["callbacks"])
    if any(isinstance(callback, pl.callbacks.ProgressBar) for callback in arguments["callbacks"]):
        settings.enable_progress_bar = True  # or Lightning refuses it
    if (settings.max_steps, settings.get("max_epochs"), settings.get("max_time")) == (-1, None, None):
        settings.max_epochs = 1000  # Lightning's default, which it sets only when training begins
    for name in {*settings} & {"logger", "callbacks"}:
        raise UserError(f"{name} is a section of its own", f"trainer.{name!s}", f"Use {name!s}=NAME.")
    for name, why in WITHOUT_EFFECT.items():
        if settings.get(name) is not None:
            raise UserError(f"trainer.{name}={settings[name]} has no effect: {why}", f"trainer.{name}", "Leave it out.")
    if settings.get("min_steps") is not None and settings.get("min_epochs") is None:
        settings.min_epochs = 0  # Lightning would insist on a whole epoch too
    if settings.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here", "trainer.accelerator", "Use trainer=cpu or trainer=auto.")
    device = torch.device(device_for(settings.accelerator))
    set_threads(device, n_embd)
    if settings.precision == "auto":
        settings.precision = "bf16-mixed" if fast_dtype(device, n_embd) == torch.bfloat16 else "32-true"
    check_strategy(settings, arguments["callbacks"])
    keep_memory()
    trainer: pl.Trainer = build(settings, "trainer", **arguments)
    if not hasattr(trainer, "val_check_interval"):  # it is a time, and Lightning 2.6 forgets what its callbacks read
        trainer.val_check_interval = None  # type: ignore[assignment]
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        what = f"trainer.strategy={settings.strategy} trains in processes that hand back little more than the weights"
        raise UserError(what, "trainer.strategy", "Use trainer.strategy=ddp, which starts this program anew in each.")
    check_machine(trainer)
    use_launcher(trainer)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:  # processes share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // trainer.num_devices))
    if global_batch_size is not None:
        trainer.accumulate_grad_batches = accumulation(global_batch_size, batch_size, trainer.world_size)
        if accumulated not in (1, trainer.accumulate_grad_batches):
            what = f"trainer.accumulate_grad_batches={accumulated} contradicts datamodule.global_batch_size, "
            what += f"which makes it {trainer.accumulate_grad_batches}"
            raise UserError(what, "trainer.accumulate_grad_batches", "Leave it out.")
    return trainer


def check_strategy(settings: DictConfig, callbacks: list[pl.Callback]) -> None:
    """Raise UserError where weights can't be divided over processes as a Trainer's settings ask for."""
    strategy = settings.get("strategy")  # task=check leaves it out: it tries one process
    target = leads_to(strategy.get("_target_")) if isinstance(strategy, DictConfig) else str(strategy)
    if target.startswith("fsdp") or target.endswith((".FSDPStrategy", ".ModelParallelStrategy")):
        what = f"trainer.strategy={target} writes checkpoints that nothing else reads"
        raise UserError(
            what, "trainer.strategy", "Use trainer=fsdp, which goes on with those of any number of processes."
        )
    if target == f"{ShardedStrategy.__module__}.{ShardedStrategy.__qualname__}":
        check_callbacks(callbacks)
        if settings.precision not in PRECISIONS:
            what = f"precision={settings.precision} is not for weights that are divided over processes"
            raise UserError(what, "trainer.precision", f"Use one of: {', '.join(PRECISIONS)}.")


def device_for(accelerator: str) -> str:
    """The device of a Trainer's `accelerator`, for work without a Trainer."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator in ("auto", "mps") and torch.backends.mps.is_available() else "cpu"
