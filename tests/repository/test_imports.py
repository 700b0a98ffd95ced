"""Imports point one way: a module imports only what stands before it in MODULES, at once or later."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common import ROOT

PACKAGE = ROOT / "mingpt_lightning"

ROOMS = {
    "what everything may use": (
        *("finder", "errors", "files", "console", "signals", "text", "rows", "probe", "device", "shuffle"),
    ),
    "text and tokens": ("hub", "tokenizer", "tokenizer_files", "gguf_file", "gguf_tokenizer", "bpe", "chat"),
    "the model, in pure torch": ("layers", "cache", "gpt", "structure", "loss", "recompute"),
    "generation, pretrained weights": (
        "generation",
        "inference",
        "weights",
        "foreign",
        "card",
        "openai_gpt",
        "imagegpt",
        "llama",
        "architectures",
        "adapter",
        "pretrained",
        "saving",
        "completion",
    ),
    "data, optimizers, metrics": ("objective", "optim", "shards", "muon", "dataset", "datamodule", "metrics"),
    "training with Lightning": (
        "averages",
        "storage",
        "loop_state",
        "restore",
        "checkpoint",
        "sharding",
        "language_model",
        "callbacks",
    ),
    "the program, with Hydra": (
        *("cli.sweep", "cli.__init__", "cli.signatures", "cli.trust", "cli.config", "cli.overrides"),
        *("cli.own_settings", "cli.processes", "cli.watch", "cli.annotations", "cli.complaints", "cli.limits"),
        *("cli.build",),
        *("cli.restore", "cli.start", "cli.run", "cli.resume", "cli.summary", "cli.fit", "cli.evaluate"),
        *(
            "cli.export",
            "cli.push",
            "cli.converse",
            "cli.pictures",
            "cli.generate",
            "cli.check",
            "cli.help",
            "cli.main",
            "__main__",
        ),
    ),
}
MODULES = [module for modules in ROOMS.values() for module in modules]
"""The order of imports. `__init__`, which holds the version and imports public names when they are used, is first."""

UPWARD = {("gpt", "generation"), ("gpt", "pretrained"), ("gpt", "saving")}
"""The exceptions: GPT's three short methods `generate`, `from_pretrained` and `save_pretrained`."""

LIGHTNING = MODULES.index("datamodule")
PROGRAM = MODULES.index("cli.sweep")
NO_TORCH = {
    "finder",
    "errors",
    "files",
    "console",
    "signals",
    "text",
    "rows",
    "shuffle",
    "tokenizer",
    "cli.help",
    "cli.signatures",
    "cli.trust",
}  # neither now nor later
NO_TORCH_AT_ONCE = {
    *NO_TORCH,
    "hub",
    "bpe",
    "tokenizer_files",
    "gguf_file",
    "gguf_tokenizer",
    "optim",
    "cli.config",
    "cli.processes",
    "cli.main",
    "cli.sweep",
    "cli.__init__",
    "__main__",
}


def path_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (part.value for part in node.args if isinstance(part, ast.Constant))
        elif at_once and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not (at_once and isinstance(node, ast.FunctionDef)):
            nodes += ast.iter_child_nodes(node)


def ours(path: Path) -> set[str]:
    """The modules of the library and the program that a file imports."""
    found = {name.removeprefix("mingpt_lightning.") for name in imports(path) if name.startswith("mingpt_lightning.")}
    return {"cli.__init__" if name == "cli" else name for name in found} & set(MODULES)


def tops(names: Iterator[str]) -> set[str]:
    """The packages of some modules."""
    return {name.split(".")[0] for name in names}


def test_every_module_has_a_place() -> None:
    files = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in PACKAGE.rglob("*.py")}
    assert sorted(MODULES) == sorted(files - {"__init__"})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    place = MODULES.index(module)
    later = {other for other in ours(path_of(module)) if MODULES.index(other) >= place}
    assert later == {other for name, other in UPWARD if name == module}


def test_gpt_looks_up_in_three_methods_only() -> None:
    tree = ast.parse(path_of("gpt").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lazy = {f.name for f in functions if any(isinstance(node, ast.ImportFrom) for node in ast.walk(f))}
    assert lazy == {"generate", "from_pretrained", "save_pretrained"}


@pytest.mark.parametrize("module", MODULES[:PROGRAM])
def test_the_library_knows_no_hydra_no_program_and_no_project(module: str) -> None:
    used = tops(imports(path_of(module)))
    assert used & {"hydra", "omegaconf", "projects"} == set()
    if MODULES.index(module) < LIGHTNING:
        assert used & {"pytorch_lightning", "lightning"} == set()


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_some_modules_never_need_torch(module: str) -> None:
    assert tops(imports(path_of(module))) & {"torch", "pytorch_lightning"} == set()


@pytest.mark.parametrize("module", sorted(NO_TORCH_AT_ONCE))
def test_some_modules_need_torch_later_only(module: str) -> None:
    assert tops(imports(path_of(module), at_once=True)) & {"torch", "pytorch_lightning"} == set()


def test_projects_know_neither_hydra_nor_the_program() -> None:
    for path in (ROOT / "projects").rglob("*.py"):
        assert tops(imports(path)) & {"hydra", "omegaconf"} == set(), path
        assert not any(name.startswith("cli.") for name in ours(path)), path


def test_nothing_heavy_is_loaded_before_the_config_is_known_to_be_good() -> None:
    code = """
import sys
import mingpt_lightning, mingpt_lightning.cli.config, mingpt_lightning.cli.main
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


PLACES = ("model", "datamodule", "optimizer", "scheduler", "trainer", "callbacks", "logger", "hydra")


@pytest.mark.parametrize(
    "path",
    [*map(path_of, MODULES[:PROGRAM]), *(ROOT / "projects").rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_library_code_names_no_config_key(path: Path) -> None:
    """It names its parameters; the program puts the place in front of them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    keys = tuple(f"{place}." for place in PLACES)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if not ast.unparse(call.func).endswith("Error"):
            continue
        for text in (node.value for node in ast.walk(call) if isinstance(node, ast.Constant)):
            words = str(text).replace("(", " ").replace("=", "= ").split()
            assert not [w for w in words if (w.startswith(keys) and w[-1].isalpha()) or w in ("run_dir=", "resume=")], (
                text
            )
