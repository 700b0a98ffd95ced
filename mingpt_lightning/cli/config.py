"""The config: where its files are, what its interpolations compute, and which mistakes are refused at once.

Free of torch and Lightning, so that a mistyped command is answered immediately.
"""

import math
import os
import re
import sys
import zlib
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from mingpt_lightning.cli.signatures import keys_of
from mingpt_lightning.cli.trust import VARIABLE
from mingpt_lightning.errors import UserError, check_gpt_sizes, nearest
from mingpt_lightning.objective import direction, solved
from mingpt_lightning.optim import lr_for_width

PACKAGE = Path(__file__).parent.parent
CONFIG_DIR = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""Inside the package when installed, beside it in a checkout."""


class Rule(NamedTuple):
    """What a key takes beside values of the type of its default.

    types: more types. low, high: the range of numbers. null: whether it may be null. choices: the only values.
    """

    types: tuple[type, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    null: bool = True
    choices: tuple[Any, ...] = ()


LIMIT = Rule((int, float), low=0)
RULES = {
    "seed": Rule((int,), 0, 2**32 - 1, null=False),
    "compile": Rule((bool, str), choices=(True, False, "auto")),
    "resume": Rule(choices=("auto", "must", "never")),
    "datamodule.global_batch_size": Rule((int,), low=1),
    "process_timeout": Rule((int, float), low=2, null=False),
    "model.block_size": Rule((int,), low=1),
    **{f"model.{name}": Rule((bool, str)) for name in ("bias", "qk_norm")},
    "optimizer.lr": Rule(low=1e-30, high=1e30),
    "trainer.max_steps": Rule((int,), low=-1, null=False),
    "trainer.accumulate_grad_batches": Rule((int,), low=1, null=False),
    "trainer.log_every_n_steps": Rule((int,), low=0, null=False),
    "trainer.val_check_interval": Rule((dict, float, str, int), low=1e-9),
    "trainer.check_val_every_n_epoch": Rule((int,), low=1),
    "trainer.gradient_clip_val": Rule(low=0),
    "trainer.limit_train_batches": Rule((int, float), low=1e-9),
    **{f"trainer.limit_{name}_batches": LIMIT for name in ("val", "test", "predict")},
    "trainer.max_epochs": Rule((int,), low=-1),
    **{f"trainer.{name}": Rule((int,), low=0) for name in ("min_epochs", "min_steps")},
    "trainer.max_time": Rule((dict, str)),
    "trainer.devices": Rule((int, str, list)),
    "trainer.num_nodes": Rule((int,), low=1),
    "trainer.fast_dev_run": Rule((int, bool)),
}
"""Keys with more to check than the type of their default: values that Lightning or torch would accept, then divide by,
ignore, or never finish with."""

TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list"}


def run_name() -> str:
    """The name of a run's folder: the time; within a SLURM job, a name that is the same when the job is requeued."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        names = chain([now], (f"{now}_{number}" for number in count(2)))  # of two runs within a second
        return next(name for name in names if not any(Path("runs").glob(f"*/{name}")))
    return f"slurm-{job}-{zlib.crc32(repr(sys.argv[1:]).encode()):08x}"


def default_resume() -> str:
    """never: a run is neither overwritten nor resumed by accident; auto in SLURM, where each job has its own folder."""
    return "never" if os.environ.get("SLURM_JOB_ID") is None else "auto"


OmegaConf.register_new_resolver("lr_for_width", lr_for_width, replace=True)
OmegaConf.register_new_resolver("direction", direction, replace=True)
OmegaConf.register_new_resolver("solved", solved, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)
OmegaConf.register_new_resolver("default_resume", default_resume, replace=True)


def compose(overrides: list[str]) -> DictConfig:
    """The config of some overrides, composed during a run as the command line would. It isn't to be changed."""
    hydra = HydraConfig.get()
    places = [item for item in hydra.overrides.hydra if item.startswith("hydra.searchpath=")]
    folders = {Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"}
    make = load_once if folders == {CONFIG_DIR} else load_once.__wrapped__
    return make(hydra.job.config_name, (*places, *overrides))


@cache
def load_once(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """The config of our own files, once per process: a sweep's jobs share most of them."""
    return GlobalHydra.instance().config_loader().load_configuration(name, list(overrides), run_mode=RunMode.RUN)


def check_config(cfg: DictConfig) -> None:
    """Raise UserError for an unknown key, a value of the wrong type or out of range, or a model that can't be built.

    A value that the user gives must have the type of the default that it replaces, or one of its Rule.
    """
    choices = HydraConfig.get().runtime.choices
    check_places()
    groups: list[Override] = []
    values: list[Override] = []
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        (groups if override.key_or_group in choices else values).append(override)
    for group in ("task", "experiment"):
        if isinstance(cfg.get(group), DictConfig):
            what = f"{group}={choices[group]} does nothing: its keys are in a section of their own"
            raise UserError(what, group, "Make '# @package _global_' the first line of its file.")
    if choices.get("experiment"):
        default = compose([f"task={choices['task']}"])
        if unknown := {*map(str, cfg)} - {*map(str, default)} - {*choices} - {item.key_or_group for item in values}:
            raise unknown_key(min(unknown), default, f"experiment={choices['experiment']}")
    if values:
        default = compose([str(override.input_line) for override in groups])
        for key in set(cfg) - set(default):
            raise unknown_key(str(key), default, "command line")
        for override in values:
            name, given = override.key_or_group, override.value()
            if isinstance(given, float) and not math.isfinite(given):
                raise UserError(f"{name}={given} is not a finite number", name, "Give another one.")
            if not override.is_delete():
                check_type(name, OmegaConf.select(cfg, name), OmegaConf.select(default, name))
    if isinstance(cfg.model, DictConfig) and {"n_layer", "n_head", "n_embd"} <= set(cfg.model):
        given = {name: cfg.model[name] for name in ("dropout", "n_kv_head", "head_dim") if name in cfg.model}
        check_gpt_sizes(cfg.model.n_layer, cfg.model.n_head, cfg.model.n_embd, **given)
    for place, rule in RULES.items():
        section, _, name = place.rpartition(".")
        parent = OmegaConf.select(cfg, section) if section else cfg
        if isinstance(parent, DictConfig) and name in parent:
            check_rule(place, parent[name], rule)
    if OmegaConf.select(cfg, "trainer.max_steps") == 0:
        raise UserError("trainer.max_steps=0 trains nothing", "trainer.max_steps", "Use 1 or more, or -1 for no limit.")
    if isinstance(cfg.scheduler, DictConfig) and str(cfg.scheduler.get("_target_")).startswith("mingpt_lightning."):
        for argument, fraction in cfg.scheduler.items():
            if isinstance(fraction, int | float) and not isinstance(fraction, bool) and not 0 <= fraction <= 1:
                place = f"scheduler.{argument!s}"
                raise UserError(f"{place}={fraction} is not a fraction", place, "Use 0 to 1.")


def check_places() -> None:
    """Raise UserError for a choice that two folders of configs have, of which Hydra takes the first without a word.

    Also for one whose config sets which code is trusted.
    """
    hydra = HydraConfig.get()
    if VARIABLE in hydra.job.env_set:
        what = f"a config can't say which code is trusted: it sets {VARIABLE}"
        raise UserError(what, "hydra.job.env_set", "Set it in the shell.")
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    for group, choice in hydra.runtime.choices.items():
        files = {file.resolve(): None for folder in folders if (file := folder / group / f"{choice}.yaml").is_file()}
        texts = {file: file.read_text(encoding="utf-8", errors="replace") for file in files}
        if len({*texts.values()}) > 1:
            first, second = [*texts][:2]
            what = f"{group}={choice} is in {first.parents[1]} and in {second.parents[1]}, which hides the second"
            raise UserError(what, str(group), "Give one of them another name.")


def check_rule(key: str, value: Any, rule: Rule) -> None:
    """Raise UserError for a value that a rule excludes."""
    if value is None and not rule.null:
        raise UserError(f"{key}=null is not possible", key, "Give a number.")
    if rule.choices and value not in rule.choices:
        names = [str(choice).lower() for choice in rule.choices]
        raise UserError(f"{key}={value} is not possible", key, f"Use {', '.join(names[:-1])} or {names[-1]}.")
    if isinstance(value, int | float) and not rule.low <= value <= rule.high:
        low, high = rule.low, rule.high
        need = "above 0" if 0 < low < 1 else f"{low} or more" if math.isinf(high) else f"{low} to {high}"
        raise UserError(f"{key}={value} is out of range", key, f"Use {need}.")


def check_type(key: str, value: Any, default: Any) -> None:
    """Raise UserError when a value has neither the type of its default nor one of its rule. None means 'off'."""
    types = RULES.get(key, Rule()).types
    if value is None or (default is None and not types) or (OmegaConf.is_dict(value) and "_target_" in value):
        return
    kind = list if OmegaConf.is_list(default) else dict if OmegaConf.is_dict(default) else type(default)
    accepted = {float: (int, float), str: (str, int, float, bool), type(None): ()}.get(kind, (kind,)) + types
    given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not isinstance(given, accepted) or (isinstance(given, bool) and bool not in accepted):
        name = TYPE_NAMES.get(kind if default is not None else accepted[-1], "a section of keys")
        raise UserError(f"{key}={value} is not {name}", key, f"The default is {default}.")


def explain(error: Exception, overrides: Sequence[str]) -> UserError:
    """One line for what Hydra and OmegaConf say, in many, about a command line that can't be composed."""
    cause = error.__cause__
    if isinstance(error, UserError):
        return error
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, choice = str(error.missing_cfg_file).rsplit("/", 1)
        return UserError(f"{group}={choice} does not exist", group, nearest(choice, error.options or []))
    if isinstance(error, OSError) and error.filename:
        return UserError(f"cannot write {error.filename}: {error.strerror}", "run_dir", "Choose another run_dir=.")
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        known = [str(key) for key in cause.parent_node if key not in ("_target_", "hydra")]
        if isinstance(cause.parent_node, DictConfig) and cause.full_key == str(cause.key):  # at top level
            return unknown_key(str(cause.key), cause.parent_node, "command line")
        if isinstance(cause.parent_node, DictConfig) and "_target_" in cause.parent_node:
            section, target = str(cause.full_key).partition(".")[0], str(cause.parent_node["_target_"])
            known = list({*known, *keys_of(section, target).parameters})
        return UserError(f"unknown key '{cause.full_key}'", "command line", nearest(str(cause.key), known))
    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read '{error.override}'", "command line", "Write it as KEY=VALUE or GROUP=OPTION.")
    for override in parsed(overrides):
        group, value = override.key_or_group, override.value()
        if override.is_sweep_override() and isinstance(error, HydraException | ValueError):
            fix = "Add -m for a sweep, or write a list as [1,2]."
            return UserError(f"{override.input_line} has a comma", "command line", fix)
        if (CONFIG_DIR / group).is_dir() and not isinstance(value, str | list) and not override.is_delete():
            fix = f"Use {group}=none." if (CONFIG_DIR / group / "none.yaml").exists() else "Name one of its choices."
            return UserError(f"{override.input_line} is not possible", group, fix)
    message = str(error) or type(error).__name__
    first = next(line.strip() for line in message.splitlines() if line.strip())
    return UserError(first, "command line", f"See {program()} --help.")


def targets(node: Any, where: str = "") -> dict[str, Any]:
    """The `_target_` of plain data and of all that is in it, by the dotted keys of their places below `where`."""
    found = {where: node["_target_"]} if isinstance(node, dict) and "_target_" in node else {}
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inside:
        found |= targets(value, f"{where}.{name}")
    return found


def unknown_key(key: str, cfg: DictConfig, where: str) -> UserError:
    """One line for a key that a config doesn't have at top level; it names the sections that have it."""
    sections = {str(name): node for name, node in cfg.items_ex(resolve=False)}
    inside = [name for name, node in sections.items() if isinstance(node, DictConfig) and key in node]
    places = [f"'{name}.{key}'" for name in inside if name != "hydra"]
    fix = f"Did you mean {' or '.join(places)}?" if places else nearest(key, sections.keys() - {"hydra"})
    return UserError(f"unknown key '{key}'", where, fix)


def locate(error: UserError, section: Any, name: str) -> UserError:
    """The error with its parameter named as a key of a section of the config."""
    if isinstance(section, DictConfig) and error.where in section and not error.where.startswith(f"{name}."):
        error.where = f"{name}.{error.where}"
    return error


def locate_anywhere(error: UserError, cfg: DictConfig) -> UserError:
    """The error with its parameter named as a key of the one section of the config that has it, if it is one."""
    sections = {str(name): node for name, node in cfg.items_ex(resolve=False) if isinstance(node, DictConfig)}
    if "callbacks" in sections:
        sections |= {f"callbacks.{name!s}": node for name, node in sections["callbacks"].items_ex(resolve=False)}
    found = [name for name, node in sections.items() if isinstance(node, DictConfig) and error.where in node]
    return locate(error, sections[found[0]], found[0]) if len(found) == 1 and error.where not in cfg else error


def parsed(overrides: Sequence[str]) -> list[Override]:
    """The overrides that can be parsed."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return []


def program() -> str:
    """How this program was called: "python main.py" in a checkout, "mingpt-lightning" where it is installed."""
    name = Path(sys.argv[0]).name
    if name == "main.py":
        return "python main.py"
    return "python -m mingpt_lightning" if name == "__main__.py" else re.sub(r"\.exe$", "", name)
