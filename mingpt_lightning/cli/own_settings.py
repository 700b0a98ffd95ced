"""The settings of the run that a command names, put before the command's own: a run keeps what it needs to be read.

With `run_dir=RUN resume=auto` these are all settings that RUN was started with; with `checkpoint=RUN`, its data, model
and system. What the command gives itself replaces them. The run's folders of YAML belong to them.
"""

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mingpt_lightning.cli.config import CONFIG_DIR, default_resume
from mingpt_lightning.errors import UserError

GROUPS = ("datamodule", "model", "system")
"""What a checkpoint was made by, and a task that reads it needs."""


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
        return [str(item) for item in overrides], folders_of(hydra.runtime.config_sources)
    return [], []


def folders_of(sources: Iterable[Any]) -> list[str]:
    """Of the places of a config, the folders that are not ours: those of --config-dir and hydra.searchpath."""
    return [str(source.path) for source in sources if source.schema == "file" and source.provider != "main"]


def of_checkpoint(name: str) -> dict[str, Any]:
    """The config in a checkpoint of the command line; what is wrong with a file is said when it is read."""
    import torch

    from mingpt_lightning.storage import KEY, find_checkpoint

    with contextlib.suppress(Exception):  # whatever a damaged or crafted file leads to
        content = torch.load(find_checkpoint(name), map_location="cpu", weights_only=True, mmap=True)
        config = content[KEY]["config"]
        if all(re.fullmatch(r"[\w./ +-]+", str(config["choices"].get(group, ""))) for group in GROUPS):
            return config
    return {"choices": {}}


def values(group: str, config: dict[str, Any], folders: list[str]) -> list[str]:
    """Overrides for the values of a group in a checkpoint that differ from those in the YAML of its choice."""
    name = f"{group}/{config['choices'].get(group)}.yaml"
    files = [Path(folder, name) for folder in [str(CONFIG_DIR), *folders] if Path(folder, name).is_file()]
    default = OmegaConf.to_container(OmegaConf.load(files[0]), resolve=False) if files else {}
    assert isinstance(default, dict)
    found = []
    for key, value in config.get(group, {}).items():
        computed = isinstance(default.get(key), str) and "${" in default[key]
        if not key.startswith("_") and not computed and value != default.get(key):
            found.append(f"++{group}.{key}={written(value)}")
    return found


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value).replace("${", "\\${") + "'"
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
