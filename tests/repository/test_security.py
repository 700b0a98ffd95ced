"""No source file reads anything in a way that could run code."""

import ast
from pathlib import Path

import pytest

from tests.common import ROOT

SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("mingpt_lightning/**/*.py"), *ROOT.glob("projects/**/*.py")]
UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "dill.load", "yaml.load", "yaml.unsafe_load", "os.system"}
NEEDS_WEIGHTS_ONLY = {"torch.load", "trainer.fit", "trainer.validate", "trainer.test"}


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The name and the keyword arguments of every call in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.Call)]
    return [(ast.unparse(n.func), {str(k.arg): ast.unparse(k.value) for k in n.keywords}) for n in found]


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_nothing_is_loaded_that_could_run(path):
    for name, keywords in calls(path):
        assert name not in UNSAFE, f"{path.name} calls {name}"
        assert "allow_pickle" not in keywords
        if name in NEEDS_WEIGHTS_ONLY and (name == "torch.load" or "ckpt_path" in keywords):
            assert keywords.get("weights_only") == "True", f"{path.name}: {name}"
