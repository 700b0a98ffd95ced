"""What a command reads: a checkpoint's model, system and data, rebuilt, or a pretrained model.

Classes come from the run's choices in YAML, values from the checkpoint. A class that only the checkpoint names, because
it was given on the command line, is refused.
"""

import inspect
import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning import imagegpt
from mingpt_lightning.bpe import read_tokenizer
from mingpt_lightning.checkpoint import read_checkpoint
from mingpt_lightning.cli.build import build, leads_to, target_of
from mingpt_lightning.cli.config import compose, explain, targets
from mingpt_lightning.cli.overrides import literal
from mingpt_lightning.cli.own_settings import CHOICE
from mingpt_lightning.cli.signatures import GLOBAL
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gguf_file import is_gguf
from mingpt_lightning.gpt import GPT
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.restore import restore
from mingpt_lightning.storage import KEY, find_checkpoint
from mingpt_lightning.tokenizer import Tokenizer

GROUPS = ("experiment", "datamodule", "model", "system")
"""The groups whose choices say what a checkpoint consists of; an experiment may set keys of the others."""


def read_named(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that the command line names: its path and its content, with its project imported."""
    if cfg.checkpoint is None:
        fix = "Give checkpoint=RUN_FOLDER_OR_FILE, or model=gpt2-pretrained."
        raise UserError(f"task={cfg.task} needs a checkpoint", "checkpoint", fix)
    path = named_checkpoint(cfg.checkpoint)
    content = read_checkpoint(path)
    if "choices" in content[KEY]["config"]:  # a run of the command line, not of a notebook
        target_of(section(content, "datamodule"), "datamodule")
    return path, content


def named_checkpoint(name: str) -> Path:
    """`find_checkpoint`, with the command line's way to load a folder in Hugging Face's layout."""
    try:
        return find_checkpoint(name)
    except CheckpointError as error:
        for folder in (Path(name), Path(name).parent):
            if folder.joinpath("config.json").is_file() and Path(name).exists():
                error.fix = f"Use model=gpt2-pretrained model.name={folder}."
                break
        raise


def is_pretrained(model: Any) -> bool:
    """Whether a model section names pretrained weights."""
    return isinstance(model, DictConfig) and "name" in model


def section(content: dict[str, Any], group: str) -> DictConfig:
    """The section of the config from which a checkpoint's datamodule, model or system was built.

    Its class is that of the run's choice in YAML. Raises CheckpointError where that isn't the one that was trained.
    """
    saved = content[KEY]["config"]
    chosen = {name: choice for name, choice in saved["choices"].items() if name in GROUPS and choice is not None}
    if wrong := [str(choice) for choice in chosen.values() if not re.fullmatch(CHOICE, str(choice))]:
        raise CheckpointError(f"the checkpoint names a choice {wrong[0]!r}", "checkpoint", "Do not trust the file.")
    try:
        node: DictConfig = deepcopy(compose([f"{name}={choice}" for name, choice in chosen.items()])[group])
    except HydraException as error:
        found = explain(error, [])
        fix = "Bring the YAML back that the run was trained with, or give its folder by --config-dir."
        raise CheckpointError(f"the checkpoint's run has another config: {found.what}", found.where, fix) from error
    values = saved.get(group, {})
    for place, trained in targets(values, group).items():
        now = OmegaConf.select(node, f"{place}._target_".removeprefix(f"{group}."))
        if now != trained and now is not None:
            target_of(OmegaConf.create({"_target_": now}), place)  # so that it's known what it leads to
        if leads_to(trained) != leads_to(now):
            what = f"the checkpoint was trained with {trained}, and {group}={chosen.get(group, 'default')} "
            what += f"is {now}" if place == group else f"has {now or 'nothing'} there"
            raise CheckpointError(what, f"{place}._target_", f"Name that class in configs/{group}/NAME.yaml.")
    OmegaConf.set_struct(node, False)  # the run may have had keys that the YAML doesn't list
    node.update({name: literal(value) for name, value in values.items() if not name.startswith("_")})
    return node


def check_classes(cfg: DictConfig) -> None:
    """Raise UserError for a class that only the command line names: no checkpoint of the run could be read."""
    choices = HydraConfig.get().runtime.choices
    for group in GROUPS[1:]:
        given = [item for item in HydraConfig.get().overrides.task if item.lstrip("+").startswith(f"{group}.")]
        if any("_target_" in item for item in given):
            yaml = compose([f"{name}={choices[name]}" for name in GROUPS if choices.get(name)])[group]
            known = targets(OmegaConf.to_container(yaml), group)
            for place, target in targets(OmegaConf.to_container(cfg[group]), group).items():
                if leads_to(target) != leads_to(known.get(place)):
                    what = f"{target} is not the class of {group}={choices[group]}"
                    fix = f"Name it in configs/{group}/NAME.yaml, from which checkpoints are read, "
                    raise UserError(what, f"{place}._target_", f"{fix}and choose {group}=NAME.")


def rebuild(content: dict[str, Any]) -> LanguageModel:
    """The system of a checkpoint's content, of the classes that its run chose, in evaluation mode."""
    if "choices" not in content[KEY]["config"]:
        return restore(content, GPT, LanguageModel)
    model, system = section(content, "model"), section(content, "system")
    return restore(content, gpt_maker(model), partial(build, system, "system"))


def gpt_maker(model: DictConfig) -> Callable[..., GPT]:
    """What makes a GPT from its constructor arguments, of a section's class but without pretrained weights."""
    return GPT if is_pretrained(model) else partial(build_sizes, model)


def build_sizes(model: DictConfig, **sizes: Any) -> GPT:
    """The model of a section of the config, in the sizes of a checkpoint, of which its class may take some only."""
    names = inspect.signature(target_of(model, "model")).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    own = {name: value for name, value in model.items() if name not in sizes}
    taken = {name: value for name, value in sizes.items() if takes_all or name in names}
    return build(OmegaConf.create(own), "model", **taken)


def build_datamodule(content: dict[str, Any], cfg: DictConfig) -> SequenceDataModule:
    """The datamodule of a checkpoint's run, with the command line's own settings for it on top.

    Its vocabulary is the checkpoint's, also where the text is another one.
    """
    saved = content[KEY]["config"]
    if "choices" not in saved:
        what = "the checkpoint does not say which data it was trained on"
        raise CheckpointError(what, "checkpoint", "Evaluate it in Python, where it was written.")
    overrides = [item.lstrip("+") for item in HydraConfig.get().overrides.task]
    given = {re.split(r"[.=]", item)[1] for item in overrides if item.startswith("datamodule.")}
    choice = f"datamodule={saved['choices']['datamodule']}"
    node = cfg.datamodule
    if not any(item.startswith("datamodule=") and item != choice for item in overrides):
        node = section(content, "datamodule")
        node.update({name: cfg.datamodule[name] for name in given if name in cfg.datamodule})
    return make_datamodule(node, **vocabulary(content, node))


def make_datamodule(node: Any, **arguments: Any) -> SequenceDataModule:
    """The datamodule of a section. Raises UserError for one that the program can't train on."""
    own = node.copy()
    OmegaConf.set_struct(own, False)
    own.pop(GLOBAL, None)
    datamodule = build(own, "datamodule", **arguments)
    if not isinstance(datamodule, SequenceDataModule):
        what = f"{node._target_} is not derived from SequenceDataModule"
        raise UserError(what, "datamodule._target_", "Derive it: class Mine(SequenceDataModule).")
    return datamodule


def vocabulary(content: dict[str, Any], node: DictConfig) -> dict[str, Any]:
    """The arguments of a checkpoint's vocabulary, except those that a section sets otherwise than the run did.

    Not through the config, which would resolve "${" in a vocabulary.
    """
    arguments = (content[KEY]["tokenizer"] or {}).get("arguments", {})
    saved = content[KEY]["config"].get("datamodule", {})
    return {name: value for name, value in arguments.items() if name in node and node[name] == saved.get(name)}


def read_pretrained(
    cfg: DictConfig, tokenizer: Tokenizer | None = None, **arguments: Any
) -> tuple[GPT, Tokenizer | None]:
    """A pretrained model, and its tokenizer unless one is given; a file of weights has none, unless it is a GGUF.

    arguments: as for `from_pretrained`.
    """
    gpt: GPT = build(cfg.model, "model", **arguments)
    if tokenizer is None and (is_gguf(cfg.model.name) or not Path(cfg.model.name).expanduser().is_file()):
        if imagegpt.is_imagegpt(gpt.config):
            return gpt, imagegpt.read_tokenizer(cfg.model.name, cfg.model.revision, gpt.block_size)
        tokenizer = read_tokenizer(cfg.model.name, cfg.model.revision)
    return gpt, tokenizer


def read_system(cfg: DictConfig) -> LanguageModel:
    """The model that the command line names, with its tokenizer: a checkpoint's or a pretrained one."""
    if cfg.checkpoint is None and is_pretrained(cfg.model):
        gpt, tokenizer = read_pretrained(cfg)
        return LanguageModel(gpt, tokenizer=tokenizer).eval()
    _, content = read_named(cfg)
    return rebuild(content)
