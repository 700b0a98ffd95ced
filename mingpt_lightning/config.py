"""The config: where its files are, what its interpolations compute, and which mistakes are refused at once.

Free of torch and Lightning, so that a mistyped command is answered in no time.
"""

import math
import os
import re
import sys
import zlib
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning.errors import UserError, check_gpt_sizes, nearest
from mingpt_lightning.optim import lr_for_width

_HERE = Path(__file__).parent
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
"""Inside the package when installed, beside it in a checkout."""

ALSO_ACCEPTED: dict[str, tuple[type, ...]] = {
    "trainer.devices": (str, list),
    "trainer.fast_dev_run": (int,),
    "trainer.val_check_interval": (float, str),
    "optimized_metric": (),
    "compile": (bool,),
}
"""Types that a key takes beside the type of its default."""


def run_name() -> str:
    """The name of a run's folder: the time; within a SLURM job, one that is the same when it's run again."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        names = chain([now], (f"{now}_{number}" for number in count(2)))  # of two runs within a second
        return next(name for name in names if not any(Path("runs").glob(f"*/{name}")))
    return f"slurm-{job}-{zlib.crc32(repr(sys.argv[1:]).encode()):08x}"


def default_resume() -> str:
    """A run isn't overwritten or gone on with by accident; the folder of a SLURM job is its own."""
    return "never" if os.environ.get("SLURM_JOB_ID") is None else "auto"


RANGES: dict[str, tuple[float, float]] = {
    "optimizer.lr": (1e-30, 1e30),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.val_check_interval": (1e-9, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
    "trainer.max_steps": (-1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.limit_train_batches": (1e-9, math.inf),
    "trainer.limit_val_batches": (0, math.inf),
    "trainer.limit_test_batches": (0, math.inf),
    "seed": (0, 2**32 - 1),
}
"""What numbers may be, that Lightning or torch would take and then divide by, ignore, or never come to an end with."""

WITHOUT_DEFAULT: dict[str, tuple[tuple[type, ...], str]] = {
    **{f"trainer.{name}": ((int,), "an integer") for name in ("max_epochs", "min_epochs", "min_steps")},
    **{f"trainer.limit_{name}_batches": ((int, float), "a number") for name in ("train", "val", "test", "predict")},
}
"""Types of keys whose default is null."""

OmegaConf.register_new_resolver("lr_for_width", lr_for_width, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)
OmegaConf.register_new_resolver("default_resume", default_resume, replace=True)


def compose(overrides: list[str]) -> DictConfig:
    """The config that these overrides make, as Hydra's own command line would, during a run."""
    loader = GlobalHydra.instance().config_loader()
    name = HydraConfig.get().job.config_name
    return loader.load_configuration(name, overrides, run_mode=RunMode.RUN)


def check(cfg: DictConfig) -> None:
    """Raise UserError for a value of the wrong type, an unknown key, or a model that can't be built.

    A value that the user gives must be of the type of the default that it replaces.
    """
    overrides = list(HydraConfig.get().overrides.task)
    choices = HydraConfig.get().runtime.choices
    groups: list[Override] = []
    values: list[Override] = []
    for override in OverridesParser.create().parse_overrides(overrides):
        (groups if override.key_or_group in choices else values).append(override)
    if values:
        default = compose([str(override.input_line) for override in groups])
        for key in set(cfg) - set(default):
            raise UserError(
                f"unknown key '{key}'", "command line", nearest(str(key), set(map(str, default)) - {"hydra"})
            )
        for override in values:
            given = override.value()
            if isinstance(given, float) and not math.isfinite(given):
                where = override.key_or_group
                raise UserError(f"{where}={given} is not a finite number", where, "Give another one.")
            if not override.is_delete():
                check_type(override.key_or_group, OmegaConf.select(cfg, override.key_or_group), default)
    if isinstance(cfg.model, DictConfig) and {"n_layer", "n_head", "n_embd"} <= set(cfg.model):
        check_gpt_sizes(cfg.model.n_layer, cfg.model.n_head, cfg.model.n_embd, cfg.model.get("dropout", 0.0))
    if cfg.compile not in (True, False, "auto"):
        raise UserError(f"compile={cfg.compile} is not possible", "compile", "Use true, false or auto.")
    if cfg.resume not in ("auto", "must", "never"):
        raise UserError(f"resume={cfg.resume} is not possible", "resume", "Use auto, must or never.")
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not low <= value <= high:
            need = "above 0" if 0 < low < 1 else f"{low} or more" if math.isinf(high) else f"{low} to {high}"
            raise UserError(f"{key}={value} is out of range", key, f"Use {need}.")
    for key in ("seed", "trainer.max_steps", "trainer.accumulate_grad_batches", "trainer.log_every_n_steps"):
        if (key == "seed" or isinstance(cfg.trainer, DictConfig)) and OmegaConf.select(cfg, key) is None:
            raise UserError(f"{key}=null is not possible", key, "Give a number.")
    if OmegaConf.select(cfg, "trainer.max_steps") == 0:
        raise UserError("trainer.max_steps=0 trains nothing", "trainer.max_steps", "Use 1 or more, or -1 for no limit.")
    if isinstance(cfg.scheduler, DictConfig) and str(cfg.scheduler.get("_target_")).startswith("mingpt_lightning."):
        for name, share in cfg.scheduler.items():
            if isinstance(share, int | float) and not isinstance(share, bool) and not 0 <= share <= 1:
                raise UserError(f"scheduler.{name!s}={share} is not a share", f"scheduler.{name!s}", "Use 0 to 1.")


def check_type(key: str, value: Any, default: DictConfig) -> None:
    """Raise UserError when a value isn't of the type of its default. None means 'off' and is left to the target."""
    expected = OmegaConf.select(default, key)
    accepted: tuple[type, ...]
    match expected:
        case None if key in WITHOUT_DEFAULT:
            accepted, name = WITHOUT_DEFAULT[key]
        case None:
            return
        case bool():
            accepted, name = (bool,), "true or false"
        case int():
            accepted, name = (int,), "an integer"
        case float():
            accepted, name = (int, float), "a number"
        case str():
            accepted, name = (str, int, float, bool), "text"
        case _:
            accepted, name = (
                (type(expected),),
                "a list" if OmegaConf.is_list(expected) else "a section of keys",
            )
    accepted += ALSO_ACCEPTED.get(key, ())
    plain = OmegaConf.to_container(value) if list in accepted and OmegaConf.is_list(value) else value
    wrong = not isinstance(plain, accepted) or (isinstance(plain, bool) and bool not in accepted)
    if value is not None and wrong:
        raise UserError(f"{key}={value} is not {name}", key, f"The default is {expected}.")


def explain(error: Exception, overrides: list[str]) -> UserError:
    """One line for what Hydra says, in many, about a command line that it can't compose."""
    message = str(error) or type(error).__name__
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        group, choice = missing.groups()
        listed = message.split("Available options in", 1)[-1].splitlines()[1:]
        options = [line.strip() for line in listed if line.strip() and ":" not in line]
        return UserError(f"{group}={choice} does not exist", group, nearest(choice, options))
    if isinstance(error, OSError) and error.filename:
        return UserError(f"cannot write {error.filename}: {error.strerror}", "run_dir", "Choose another run_dir=.")
    if "Config group override must be" in message:
        odd = (item for item in overrides if re.fullmatch(r"\w+=(null|None|~|true|false|[-\d.]+)", item))
        given = next(odd, overrides[0])
        group = given.partition("=")[0]
        fix = f"Use {group}=none." if (CONFIG_DIR / group / "none.yaml").exists() else "Name one of its choices."
        return UserError(f"{given} is not possible", group, fix)
    if unknown := re.search(r"Could not override '([^']+)'", message):
        key = unknown[1]
        parent, _, name = key.rpartition(".")
        return UserError(f"unknown key '{key}'", "command line", nearest(name, keys_below(parent, overrides)))
    if "Ambiguous value" in message:
        argument = message.split("'")[1]
        return UserError(f"{argument} has a comma", "command line", "Add -m for a sweep, or write a list as [1,2].")
    first = next(line.strip() for line in message.splitlines() if line.strip())
    return UserError(first, "command line", "See python main.py --help.")


def keys_below(parent: str, overrides: list[str]) -> list[str]:
    """The keys of a section of the config, under the user's choices as far as they are valid."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for choices in ([item for item in overrides if re.fullmatch(r"[a-z]+=[^,]+", item)], []):
            try:
                cfg = hydra_compose("config", choices)
                section = OmegaConf.select(cfg, parent) if parent else cfg
                return [str(key) for key in section if key != "_target_"] if isinstance(section, DictConfig) else []
            except HydraException:
                continue
    return []
