"""The command line in Hydra's grammar: text is taken as typed, whatever commas, quotes or brackets it has.

Numbers, lists and everything else are left as Hydra has them. Which keys hold text follows from the YAML, and from the
annotation of the argument in the class that the YAML names.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from mingpt_lightning.cli.config import CONFIG_DIR
from mingpt_lightning.cli.signatures import keys_of, signature_of

Kind = Literal["text", "text or null", "text or list", "text or object", "other"]

TEXT, LISTS, NULL = {"str", "Path", "_PATH", "PathLike"}, {"list", "List", "Sequence"}, {"None", "Optional"}
"""The words for these in the annotation of an argument."""

TOP: dict[str, Kind] = {
    **dict.fromkeys(("prompt", "run_dir", "optimized_metric"), "text"),
    **dict.fromkeys(("prompt_file", "checkpoint", "output", "system_message"), "text or null"),
    "stop": "text or list",
}
"""The keys outside of sections that hold text."""

SAID = ("prompt", "stop", "system_message")
"""Keys whose text is somebody's words: an interpolation in it is text too."""

INTERPOLATION = r"\$\{[\w.]*(:[^{}$]*)?\}"
MISSING = "???"
"""What OmegaConf takes for a value that is still to be given."""
OmegaConf.register_new_resolver("as_typed", {"missing": MISSING}.__getitem__, replace=True)

SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

SWEEP = r"(choice|range|interval|glob|shuffle|sort|tag|extend_list)\(.*\)"


def quoted(argument: str, sweep: bool = False, folders: Iterable[str] = ()) -> str:
    """An override whose value is text, in Hydra's quotes; any other as it is.

    sweep: commas separate values, each of which is quoted, and what is in quotes is one value. folders: of YAML beside
    ours.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+~")
    if not equals or not value or name.startswith("hydra.") or not re.fullmatch(r"[\w./@:-]+", name):
        return argument
    override = parsed(argument)
    if override is not None and override.value() == value and "${" not in value and value != MISSING:
        return argument  # as typed already
    kind = kind_of(name, tuple(folders)) if override is not None or name in TOP else "text"
    if kind == "other" or (value == "null" and kind != "text"):
        return argument
    if sweep and name != "run_dir":  # a sweep has one
        if re.fullmatch(SWEEP, value):
            return argument
        return f"{key}={','.join(part if is_quoted(part) else written(part, name) for part in split(value))}"
    other = {"text or list": list, "text or object": dict}.get(kind)
    if other and override is not None and isinstance(override.value(), other):
        return argument
    return f"{key}={written(value, name)}"


def with_system_message(arguments: list[str], folders: Iterable[str] = ()) -> list[str]:
    """The command line, in which `system=TEXT` of task=generate is `system_message=TEXT`.

    But where the group `system` has a choice of that name, it is that choice.
    """
    if "task=generate" not in arguments:
        return arguments
    choices = {file.stem for file in files_of("system", tuple(folders))}
    return [
        f"system_message={item[7:]}" if item.startswith("system=") and item[7:] not in choices else item
        for item in arguments
    ]


def parsed(argument: str) -> Override | None:
    """An override by Hydra's grammar; None where it isn't one."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def written(value: str, key: str = "") -> str:
    """Text in Hydra's grammar; an interpolation in it stays one, unless the key holds somebody's words."""
    return as_text(value) if key in SAID or not re.search(INTERPOLATION, value) else in_quotes(value)


def as_text(value: str) -> str:
    """Text in Hydra's grammar, in which nothing is an interpolation."""
    return in_quotes("${as_typed:missing}" if value == MISSING else literal(value))


def in_quotes(text: str) -> str:
    """Text in Hydra's quotes, where an interpolation stays one."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def literal(value: Any) -> Any:
    """Plain data as a config holds it: what looks like an interpolation in its text is text."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, list):
        return [literal(item) for item in value]
    return {name: literal(item) for name, item in value.items()} if isinstance(value, dict) else value


def is_quoted(part: str) -> bool:
    """Whether a part of a sweep is in quotes of Hydra's."""
    return re.fullmatch(r"'(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\"", part.strip()) is not None


def split(value: str) -> Iterator[str]:
    """The values of a sweep: between commas that are in neither quotes nor brackets."""
    if value.count("'") % 2 or value.count('"') % 2:  # they don't quote
        yield from value.split(",")
        return
    yield from re.findall(r"(?:'(?:\\.|[^'])*'|\"(?:\\.|[^\"])*\"|\[[^\]]*\]|[^,])+", value)


def kind_of(name: str, folders: tuple[str, ...]) -> Kind:
    """What a key holds: text, and whether it may be null or a list too; or something else."""
    section, _, rest = name.partition(".")
    if not rest:
        return TOP.get(name, "other")
    kinds = [kind for file in files_of(section, folders) if (kind := kind_in(file, rest.split("."))) is not None]
    if not kinds or "other" in kinds:
        return "other"
    return next(kind for kind in get_args(Kind)[::-1] if kind in kinds)


def files_of(section: str, folders: tuple[str, ...]) -> Iterator[Path]:
    """The YAML of a group, ours and that in other folders."""
    for folder in (CONFIG_DIR, *map(Path, folders)):
        yield from sorted((folder / section).glob("*.yaml"))


@lru_cache
def read(file: Path) -> Any:
    """The content of a YAML file; None where it can't be read, which is said elsewhere."""
    try:
        return SafeLoader(file.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, yaml.YAMLError):
        return None


def kind_in(file: Path, path: list[str]) -> Kind | None:
    """What a key of one choice of a group holds; None where the choice has no such key."""
    node = read(file)
    for part in path[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return None
    value, signature = node.get(path[-1]), signature_of(str(node.get("_target_")))
    annotation = signature.parameters.get(path[-1]) if signature else None
    if annotation is None:
        return ("text" if isinstance(value, str) and "${" not in value else "other") if path[-1] in node else None
    words = {*re.findall(r"\w+", annotation)}
    if not words & TEXT or words & {"int", "float", "bool"}:
        return "other"
    if words & LISTS:
        return "text or list"
    if words - TEXT - NULL - {"Union", "os"}:
        return "text or object"
    return "text or null" if words & NULL else "text"


def with_key(error: Exception, overrides: list[str]) -> list[str] | None:
    """The overrides, one of which now adds its key: Hydra knows the keys in the YAML only, its class takes more.

    error: what Hydra raises about the key. None where it is about something else, or the class doesn't take the key.
    """
    cause = error.__cause__
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError) or not isinstance(cause.parent_node, DictConfig):
        return None
    name, section = str(cause.full_key), str(cause.full_key).partition(".")[0]
    target = cause.parent_node.get("_target_")
    keys = keys_of(section, str(target))
    if target is None or not (str(cause.key) in keys.parameters or keys.is_open):
        return None
    added = [f"++{item}" if item.startswith(f"{name}=") else item for item in overrides]
    return added if added != overrides else None
