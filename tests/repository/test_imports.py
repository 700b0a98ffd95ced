"""Arrows point down: which module may import which, and what must not be loaded early."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common import ROOT

PACKAGE = ROOT / "mingpt_lightning"

LAYERS = [
    {
        *(
            "errors",
            "signals",
            "shuffle",
            "optim",
            "device",
            "muon",
            "loss",
            "layers",
            "gpt",
            "cache",
            "generation",
            "inference",
            "hub",
            "pretrained",
        ),
        *("text", "bpe", "tokenizer", "completion"),
    },
    {"language_model", "datamodule", "callbacks", "checkpoint", "resume", "storage"},
    {"config", "build", "prompts", "summary", "fit", "check", "tasks", "cli"},
]
TORCH, LIGHTNING, HYDRA = {"torch"}, {"pytorch_lightning", "lightning"}, {"hydra", "omegaconf"}
FORBIDDEN = [LIGHTNING | HYDRA, HYDRA, set[str]()]  # for each layer
NO_TORCH = {"errors", "shuffle", "signals"}  # neither now nor later
NO_TORCH_AT_ONCE = {*NO_TORCH, "__init__", "optim", "config", "cli"}  # for quick answers

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports(path: Path, at_once: bool = False) -> Iterator[str]:
    """The modules that a file imports; `at_once`: only those that importing the file loads."""
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse  # for the type checker's eyes only
        elif not (at_once and isinstance(node, ast.FunctionDef)):
            nodes += ast.iter_child_nodes(node)


def tops(names: Iterator[str]) -> set[str]:
    """The packages of some modules."""
    return {name.split(".")[0] for name in names}


def layer(module: str) -> int:
    """The number of a module's layer."""
    return next(number for number, modules in enumerate(LAYERS) if module in modules)


def test_every_module_has_a_layer() -> None:
    assert sorted({"__init__"}.union(*LAYERS)) == MODULES


@pytest.mark.parametrize("module", sorted(set().union(*LAYERS)))
def test_a_module_imports_its_own_layer_or_lower_ones(module: str) -> None:
    names = set(imports(PACKAGE / f"{module}.py"))
    ours = {name.split(".")[1] for name in names if name.startswith("mingpt_lightning.")} & set(MODULES)
    assert {other for other in ours if layer(other) > layer(module)} == set()
    assert tops(iter(names)) & FORBIDDEN[layer(module)] == set()


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_some_modules_never_need_torch(module: str) -> None:
    assert tops(imports(PACKAGE / f"{module}.py")) & (TORCH | LIGHTNING) == set()


@pytest.mark.parametrize("module", sorted(NO_TORCH_AT_ONCE))
def test_some_modules_need_torch_later_only(module: str) -> None:
    assert tops(imports(PACKAGE / f"{module}.py", at_once=True)) & (TORCH | LIGHTNING) == set()


@pytest.mark.parametrize("module", MODULES)
def test_the_library_knows_no_project(module: str) -> None:
    assert "projects" not in tops(imports(PACKAGE / f"{module}.py"))


def test_projects_need_no_hydra() -> None:
    for path in (ROOT / "projects").rglob("*.py"):
        assert tops(imports(path)) & HYDRA == set(), path


def test_nothing_heavy_is_loaded_before_the_config_is_known_to_be_good() -> None:
    code = """
import sys
import mingpt_lightning, mingpt_lightning.config, mingpt_lightning.cli
print(*sorted({"torch", "pytorch_lightning", "transformers", "numpy"} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_public_names_are_there_when_they_are_wanted() -> None:
    import mingpt_lightning

    for name in mingpt_lightning.__all__:
        assert getattr(mingpt_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'gtp'"):
        mingpt_lightning.gtp  # noqa: B018
