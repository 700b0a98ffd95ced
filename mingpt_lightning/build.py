"""From a config to the objects that it describes.

The only place that calls Hydra's `instantiate`; what goes wrong in there is the config's fault, so it ends in one line.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from mingpt_lightning.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from mingpt_lightning.config import compose
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.device import fast_dtype
from mingpt_lightning.errors import CheckpointError, UserError, nearest, resource_error
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.resume import KEY
from mingpt_lightning.tokenizer import read_tokenizer

KNOWN = (
    *("mingpt_lightning.", "projects.", "torch.optim.", "pytorch_lightning.Trainer"),
    *(f"pytorch_lightning.{part}." for part in ("callbacks", "loggers", "profilers", "strategies", "plugins")),
)
"""What a `_target_` may be. Nothing else is imported or called."""


def check_targets(node: Any, where: str) -> None:
    """Raise UserError for a `_target_`, here or further down, that isn't a class or function of KNOWN.

    What the name leads to must live there too: a known module has imported others, and these may do anything.
    """
    if isinstance(node, dict):
        if (target := node.get("_target_")) is not None:
            known = f"A _target_ is one of {', '.join(KNOWN)} or your own in projects/."
            if not isinstance(target, str) or not f"{target}.".startswith(KNOWN):
                raise UserError(f"{target} is not allowed", f"{where}._target_", known)
            try:
                found = get_object(target)
            except Exception as error:  # whatever importing it says
                what = f"{target} cannot be found: {' '.join(str(error).split())[:200]}"
                raise UserError(what, f"{where}._target_", "Correct it.") from error
            home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
            if not callable(found) or not home.startswith((*KNOWN, "pytorch_lightning.trainer.trainer.Trainer")):
                raise UserError(f"{target} is not allowed: it is {home}", f"{where}._target_", known)
        for name, value in node.items():
            check_targets(value, f"{where}.{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            check_targets(value, f"{where}[{number}]")


def build(node: Any, where: str, **arguments: Any) -> Any:
    """The object that a section of the config describes: its `_target_`, called with its keys and `arguments`.

    `_partial_: true` gives a partial. Raises UserError when the target can't be found or doesn't take the arguments.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{where} names no class", where, f"Choose one with {where}=NAME, or give it a _target_.")
    check_targets(OmegaConf.to_container(node, resolve=True), where)
    try:
        factory = instantiate(node, _convert_="all", _partial_=True)
        return factory if node.get("_partial_") else factory(**arguments)
    except UserError:
        raise
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(str(error).splitlines()[0], where, "Check its _target_ and arguments.") from error
    except Exception as error:  # whatever the target says of its arguments: they come from the config
        if known_error := resource_error(error):
            raise known_error from error
        message = " ".join(str(error).split()) or type(error).__name__
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", message):
            known = inspect.signature(get_object(node._target_)).parameters
            raise UserError(f"unknown key '{where}.{unknown[1]}'", where, nearest(unknown[1], known)) from error
        if isinstance(error, ImportError):
            raise UserError(message, where, "Install what is missing, or choose another.") from error
        given = [item for item in HydraConfig.get().overrides.task if item.startswith(f"{where}.")]
        given = [item for item in given if item.partition("=")[0].rpartition(".")[2] in message] or given[:3]
        raise UserError(message, ", ".join(given) or where, "Correct its arguments.") from error


def build_each(section: DictConfig, where: str) -> list[Any]:
    """The objects of a section of named ones; those set to null are left out."""
    return [build(node, f"{where}.{name!s}") for name, node in section.items() if node is not None]


def build_callbacks(section: DictConfig, metrics: list[str], logging: bool) -> list[pl.Callback]:
    """The callbacks, none of which may monitor a metric that doesn't exist."""
    for name, node in section.items():
        monitor = node.get("monitor") if isinstance(node, DictConfig) else None
        if monitor is not None and monitor not in metrics:
            where = f"callbacks.{name!s}.monitor"
            raise UserError(f"there is no metric '{monitor}'", where, nearest(str(monitor), metrics))
    callbacks = build_each(section, "callbacks")
    for callback in callbacks:
        if isinstance(callback, Checkpoint) and not callback.monitor.startswith("val/"):
            what = f"{callback.monitor} is not known where the best checkpoint is chosen"
            fix = f"Choose one of: {', '.join(metric for metric in metrics if metric.startswith('val/'))}."
            raise UserError(what, "callbacks.checkpoint.monitor", fix)
    if not logging:  # Lightning refuses to monitor the learning rate for nobody
        callbacks = [item for item in callbacks if not isinstance(item, pl.callbacks.LearningRateMonitor)]
    return callbacks


def build_trainer(node: DictConfig, n_embd: int, **arguments: Any) -> pl.Trainer:
    """The Trainer, with `precision: auto` decided by the device and the width of the model."""
    settings = node.copy()
    if settings.enable_checkpointing is None:  # Lightning would add a checkpoint callback of its own
        settings.enable_checkpointing = any(isinstance(c, pl.callbacks.Checkpoint) for c in arguments["callbacks"])
    if settings.precision == "auto":
        settings.precision = fast_precision(settings.accelerator, n_embd)
    if settings.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here", "trainer.accelerator", "Use trainer=cpu or trainer=auto.")
    return build(settings, "trainer", **arguments)


def device_for(accelerator: str) -> str:
    """The device of a Trainer's `accelerator`, for work without a Trainer."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator in ("auto", "mps") and torch.backends.mps.is_available() else "cpu"


def fast_precision(accelerator: str, n_embd: int) -> str:
    """bf16-mixed where it is faster, else 32-true."""
    fast = fast_dtype(torch.device(device_for(accelerator)), n_embd) == torch.bfloat16
    return "bf16-mixed" if fast else "32-true"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data for the checkpoint; without loggers, which may hold secrets."""
    known = cfg.copy()
    known.run_dir = HydraConfig.get().runtime.output_dir  # a sweep's jobs have folders of their own
    del known.logger
    values = OmegaConf.to_container(known, resolve=True)
    assert isinstance(values, dict)
    choices = {name: choice for name, choice in HydraConfig.get().runtime.choices.items() if "/" not in name}
    return {**values, "choices": choices}


def run_folder() -> Path:
    """Where this run writes, seen from the working directory where that is shorter."""
    path = Path(HydraConfig.get().runtime.output_dir)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def is_first_process() -> bool:
    """Whether this process is the one of a training's that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def save_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write .hydra/, as Hydra does, once it's clear that the run will be: a refused command leaves no trace in a run.

    Interpolations are written as such, so what they take from the environment stays there.
    """
    folder = run_dir / ".hydra"
    if not is_first_process():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        OmegaConf.save(OmegaConf.create({"hydra": HydraConfig.get()}), folder / "hydra.yaml")
        OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")
    except OSError as error:
        what = f"cannot write {folder}: {error.strerror or error}"
        raise UserError(what, "run_dir", "Choose another run_dir=.") from error


def read_named(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that the command line names: its path and its contents, with its project imported."""
    if cfg.checkpoint is None:
        fix = "Give checkpoint=RUN_FOLDER_OR_FILE, or model=gpt2-pretrained."
        raise UserError(f"task={cfg.task} needs a checkpoint", "checkpoint", fix)
    path = find_checkpoint(cfg.checkpoint)
    content = read_checkpoint(path)
    if "choices" in content[KEY]["config"]:  # a run of the command line, not of a notebook
        datamodule_class(content)
    return path, content


def is_pretrained(model: Any) -> bool:
    """Whether a model section names weights that are there already."""
    return isinstance(model, DictConfig) and "name" in model


def read_system(cfg: DictConfig) -> LanguageModel:
    """The model that the command line names, with its tokenizer: a checkpoint's or a pretrained one."""
    if cfg.checkpoint is None and is_pretrained(cfg.model):
        gpt = build(cfg.model, "model")
        return LanguageModel(gpt, tokenizer=read_tokenizer(cfg.model.name, cfg.model.revision)).eval()
    _, content = read_named(cfg)
    return LanguageModel.from_checkpoint(content)


def datamodule_class(content: dict[str, Any]) -> type:
    """The datamodule class of a checkpoint's run, by the name of its config: never by a class name in the file."""
    choice = content[KEY]["config"]["choices"]["datamodule"]
    return get_class(compose([f"datamodule={choice}"]).datamodule._target_)


def build_datamodule(content: dict[str, Any]) -> SequenceDataModule:
    """The datamodule of a checkpoint's run, with what the command line says of it on top.

    Its vocabulary is the checkpoint's, also where the text is another one.
    """
    saved = content[KEY]["config"]
    if "choices" not in saved:
        what = "the checkpoint does not say which data it was trained on"
        raise CheckpointError(what, "checkpoint", "Evaluate it in Python, where it was written.")
    overrides = [item for item in HydraConfig.get().overrides.task if re.match(r"\+?datamodule[.=]", item)]
    choice = f"datamodule={saved['choices']['datamodule']}"
    other = any(item.startswith("datamodule=") and item != choice for item in overrides)
    node = compose(overrides if other else [choice, *overrides]).datamodule
    given = {item.split("=")[0].removeprefix("datamodule.") for item in overrides}
    for name, value in ({} if other else saved["datamodule"]).items():
        if name in node and name not in given and not name.startswith("_"):
            node[name] = value
    vocabulary = content[KEY]["tokenizer"]["arguments"]  # not through the config, which would read "${" in it
    return build(node, "datamodule", **{k: v for k, v in vocabulary.items() if k in node and k not in given})
