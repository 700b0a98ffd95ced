"""What the class or function that a `_target_` names takes, read from its source: importing it could take seconds."""

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mingpt_lightning.finder import folders

GIVEN = {
    "model": ("vocab_size",),
    "system": ("gpt", "optimizer", "scheduler", "tokenizer", "config"),
    "optimizer": ("params", "groups"),
    "scheduler": ("step", "total_steps"),
    "trainer": ("callbacks", "logger"),
}
"""Arguments that the program gives to the class of a section, so that they are no keys."""

GLOBAL = "global_batch_size"
"""A key of the datamodule that the program reads itself: the sequences in an optimizer step of all processes."""


class Signature(NamedTuple):
    """The parameters by name, with their annotations as text, and whether any other name is taken too."""

    parameters: dict[str, str]
    is_open: bool


@lru_cache
def signature_of(target: str) -> Signature | None:
    """The signature of a class or function by its full name; None where its source can't be found."""
    for _ in range(6):  # of names that are imported from elsewhere
        module, _, name = target.rpartition(".")
        if not module or (tree := source_of(module)) is None:
            return None
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return signature(node, module, tree)
        if (found := imported(tree, name, module)) is None:
            return None
        target = found
    return None


def keys_of(section: str, target: str) -> Signature:
    """The arguments of a section's class that may be set as keys."""
    found = signature_of(target) or Signature({}, False)
    given = GIVEN.get(section, ())
    if section == "datamodule":
        found = found._replace(parameters={**found.parameters, GLOBAL: "int | None"})
    return Signature({name: text for name, text in found.parameters.items() if name not in given}, found.is_open)


def signature(node: ast.ClassDef | ast.FunctionDef, module: str, tree: ast.Module) -> Signature:
    """The signature of a definition; with **more, a class takes what its bases take."""
    init: ast.FunctionDef | None = node if isinstance(node, ast.FunctionDef) else None
    bases: list[str] = []
    if isinstance(node, ast.ClassDef):
        inits = (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
        init = next(inits, None)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
        if init is None and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return Signature({ast.unparse(part.target): ast.unparse(part.annotation) for part in fields}, False)
    parameters: dict[str, str] = {}
    is_open = init is None or init.args.kwarg is not None
    if is_open and bases:
        local = {part.name for part in tree.body if isinstance(part, ast.ClassDef)}
        inherited = signature_of(
            f"{module}.{bases[0]}" if bases[0] in local else imported(tree, bases[0], module) or ""
        )
        parameters, is_open = inherited or Signature({}, True)
    if init is not None:
        arguments = [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs]
        parameters = parameters | {part.arg: ast.unparse(part.annotation or ast.Name("")) for part in arguments}
    return Signature({name: text for name, text in parameters.items() if name != "self"}, is_open)


def imported(tree: ast.Module, name: str, module: str) -> str | None:
    """The full name of what a module imports under a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    parent = module.split(".")[: -node.level or None] if node.level else []
                    return ".".join([*parent, *filter(None, [node.module]), alias.name])
    return None


@lru_cache
def source_of(module: str) -> ast.Module | None:
    """The syntax tree of a module, which isn't imported."""
    top, *rest = module.split(".")
    for place in places(top):
        path = place.joinpath(*rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                try:
                    return ast.parse(file.read_text(encoding="utf-8"))
                except (OSError, ValueError, SyntaxError):
                    return None
    return None


def places(top: str) -> list[Path]:
    """The folders of a top-level package, which isn't imported; of a module, its file without the suffix."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    found = [*((spec and spec.submodule_search_locations) or [])]
    if spec and not found and spec.origin:
        found = [spec.origin.removesuffix(".py")]
    return [*map(Path, [*found, *(folders() if top == "projects" else [])])]
