"""Whether a value from YAML may be given to an argument, by the annotation in the signature of its class."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mingpt_lightning.errors import UserError, nearest

NUMBERS: dict[Any, Any] = {bool: bool, int: int, float: (int, float), complex: (int, float), str: (str, int, float)}
NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def check_values(target: Any, values: Mapping[str, Any], where: str) -> None:
    """Raise UserError for the first value that the annotation of its parameter excludes.

    target: a class or function. values: plain data by the names of its parameters. where: the section of the config.
    A parameter without an annotation, or with one that can't be read, takes anything.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints, parameters = typing.get_type_hints(function), inspect.signature(target).parameters
    except Exception:  # names that exist for a type checker only, or a builtin
        return
    for name, value in values.items():
        if name not in hints or name not in parameters or parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if not fits(value, hints[name]) and not (value is None and parameters[name].default is None):
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            place = f"{where}.{name}"
            raise UserError(f"{place}={text} is not possible", place, advice(value, hints[name]))


def fits(value: Any, annotation: Any) -> bool:
    """Whether plain data is of an annotated type; data with a `_target_` will be an object, and fits any class."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any or isinstance(annotation, TypeVar) or (isinstance(value, dict) and "_target_" in value):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation in NUMBERS:
        return isinstance(value, NUMBERS[annotation]) and (annotation is bool or not isinstance(value, bool))
    kind = origin or annotation
    if not isinstance(kind, type):
        return True  # Annotated, NewType and the like
    if issubclass(kind, tuple) and kind is tuple and inner and inner[-1] is not Ellipsis and isinstance(value, list):
        return len(value) == len(inner) and all(map(fits, value, inner))
    if issubclass(dict, kind) and kind is not object and isinstance(value, dict):
        return len(inner) < 2 or all(fits(item, inner[1]) for item in value.values())
    if kind is tuple or kind is set or (issubclass(list, kind) and issubclass(kind, Iterable)):
        return isinstance(value, list) and (not inner or all(fits(item, inner[0]) for item in value))
    if issubclass(kind, PathLike) or kind is Path:
        return isinstance(value, str)
    if kind in (Callable, type):
        return False
    return not isinstance(value, bool | int | float | str | None) or isinstance(value, kind)


def parts_of(annotation: Any) -> list[Any]:
    """The members of a union, in unions within it too; an annotation by itself otherwise."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for inner in get_args(annotation) for part in parts_of(inner)]
    return [annotation]


def advice(value: Any, annotation: Any) -> str:
    """What to give instead of a value."""
    parts = parts_of(annotation)
    choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices and not any(part in NUMBERS for part in parts):
        return nearest(str(value), choices)
    names = [NAMES.get(part) or ("a list" if get_origin(part) in (list, tuple) else "") for part in parts]
    names = [*dict.fromkeys(name for name in names if name), *choices]
    return f"Use {', '.join(names[:-1])}{' or ' * (len(names) > 1)}{names[-1]}." if names else "Give it a _target_."
