"""The settings of the run that a command names, put before the command's own: a run keeps what it needs to be read.

With `run_dir=RUN resume=auto` these are all settings that RUN was started with; with `checkpoint=RUN`, its data, model
and system. What the command gives itself replaces them. The run's folders of YAML belong to them.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mingpt_lightning.cli.config import CONFIG_DIR, default_resume, targets
from mingpt_lightning.cli.overrides import as_text
from mingpt_lightning.cli.trust import PROVIDER, declared_configs
from mingpt_lightning.errors import CheckpointError, UserError

GROUPS = ("datamodule", "model", "system")
"""What a checkpoint was made by, and a task that reads it needs."""


CHOICE = r"(?!.*\.\.)[\w./ +-]+"
"""What the name of a choice in a checkpoint may be: not a path to a folder that isn't one of configs."""


def own_settings(arguments: list[str]) -> list[str]:
    """Overrides, in Hydra's grammar, of the run that a command line names; none if it names no run."""
    given = {key_of(item): item.partition("=")[2].strip("'\"") for item in arguments if not item.startswith("-")}
    run_dir, checkpoint = Path(resolved(given.get("run_dir", ""))), resolved(given.get("checkpoint", "null"))
    training = given.get("task", "fit") in ("fit", "check")
    if training and "run_dir" in given and given.get("resume", default_resume()) != "never":
        overrides, folders = of_folder(run_dir)
        if overrides or folders:
            return [*kept(overrides, given), *search_path(folders, arguments, run_dir)]
    if checkpoint == "null":
        return []
    config = of_checkpoint(checkpoint)
    overrides = [f"{group}={config['choices'][group]}" for group in GROUPS if config["choices"].get(group)]
    folders = config.get("config_dirs", [])
    if training:
        for group in GROUPS:
            overrides += values(group, config, folders)
    return [*kept(overrides, given), *search_path(folders, arguments, checkpoint)]


def resolved(path: str) -> str:
    """A path with what its interpolations stand for; as it is where they lead nowhere, which is said elsewhere."""
    with contextlib.suppress(OmegaConfBaseException):
        return str(OmegaConf.create({"path": path}).path)
    return path


def key_of(override: str) -> str:
    """The key of an override, without what adds or deletes it."""
    return override.partition("=")[0].lstrip("+~")


def kept(overrides: list[str], given: dict[str, str]) -> list[str]:
    """The overrides that the command line doesn't replace: by the same key, or by another choice for its group.

    All choices of trainer have the same keys, so these stay.
    """
    replaced = {key for key, value in given.items() if f"{key}={value}" not in overrides} - {"trainer"}
    same = {key_of(item) for item in overrides} & {*given}
    return [i for i in overrides if key_of(i) not in same and key_of(i).partition(".")[0] not in replaced]


def of_folder(run_dir: Path) -> tuple[list[str], list[str]]:
    """What a run was started with: its overrides, and its folders of YAML; nothing where no run has begun."""
    with contextlib.suppress(OSError):
        overrides = OmegaConf.to_container(OmegaConf.load(run_dir / ".hydra" / "overrides.yaml"))
        hydra = OmegaConf.load(run_dir / ".hydra" / "hydra.yaml").hydra
        assert isinstance(overrides, list)
        for item in map(str, overrides):
            if re.match(r"-|[+~]*hydra\b", item):  # which no run of ours writes there
                what = f"{run_dir}/.hydra/overrides.yaml has {item!r}, which is not a setting of a run"
                raise UserError(what, "run_dir", "Do not trust the folder.")
        return [str(item) for item in overrides], folders_of(hydra.runtime.config_sources)
    return [], []


def folders_of(sources: Iterable[Any]) -> list[str]:
    """Of the places of a config, those that a command names: the folders of --config-dir and hydra.searchpath."""
    known = ("main", PROVIDER)
    return [str(source.path) for source in sources if source.schema == "file" and source.provider not in known]


def of_checkpoint(name: str) -> dict[str, Any]:
    """The config in a checkpoint of the command line; what is wrong with a file is said when it is read."""
    import torch

    from mingpt_lightning.storage import KEY, find_checkpoint

    with contextlib.suppress(Exception):  # whatever a damaged or crafted file leads to
        content = torch.load(find_checkpoint(name), map_location="cpu", weights_only=True, mmap=True)
        config = content[KEY]["config"]
        if all(re.fullmatch(f"({CHOICE})?", str(config["choices"].get(group) or "")) for group in GROUPS):
            return config
    return {"choices": {}}


def values(group: str, config: dict[str, Any], folders: list[str]) -> list[str]:
    """Overrides for the values of a group in a checkpoint that differ from those in the YAML of its choice."""
    name = f"{group}/{config['choices'].get(group)}.yaml"
    files = [
        file
        for folder in (str(CONFIG_DIR), *map(str, declared_configs()), *folders)
        if (file := Path(folder, name)).is_file()
    ]
    default = OmegaConf.to_container(OmegaConf.load(files[0]), resolve=False) if files else {}
    assert isinstance(default, dict)
    return list(changes(group, config.get(group, {}), default))


def changes(name: str, value: Any, default: Any) -> Iterator[str]:
    """Overrides for what differs in a value from its default; which class a value is made by stays the YAML's."""
    if isinstance(default, str) and "${" in default:  # computed
        return
    if isinstance(value, dict) and value and all(re.fullmatch(r"\w+", key) for key in value):
        for key in value:
            if not key.startswith("_"):
                yield from changes(f"{name}.{key}", value[key], default.get(key) if isinstance(default, dict) else None)
    elif not targets(value):
        yield from [f"++{name}={written(value)}"] if value != default else []
    elif default is not None and value != default:
        what = f"the checkpoint has other classes in {name} than the YAML of its run's choice"
        raise CheckpointError(what, "checkpoint", "Give them in the YAML, from which they are taken.")


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def search_path(folders: list[str], arguments: list[str], run: Any) -> list[str]:
    """The override by which Hydra finds a run's folders of YAML, unless the command line names some itself."""
    if not folders or any(item.startswith(("--config-dir", "-cd", "hydra.searchpath=")) for item in arguments):
        return []
    if gone := [folder for folder in folders if not Path(folder).is_dir()]:
        what = f"{run} was trained with the configs in {gone[0]}, which is not there any more"
        raise UserError(what, "--config-dir", "Give the folder where they are now by --config-dir.")
    return [f"hydra.searchpath={written([f'file://{folder}' for folder in folders])}"]
