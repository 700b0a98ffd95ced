"""The notebooks at the repository root run from top to bottom, and are committed without outputs."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from mingpt_lightning import GPT, BPETokenizer

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_both_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == ["demo.ipynb", "generate.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_without_outputs(path: Path) -> None:
    for cell in code_cells(read(path)):
        assert not cell.outputs, f"cell {cell.id} has outputs; clear them all and save"
        assert cell.execution_count is None


@pytest.fixture
def model(tmp_path: Path, make_gpt: Callable[..., GPT]) -> Path:
    """A folder with a small model in Hugging Face's layout, because the tests have no network."""
    tokenizer = BPETokenizer.train([(ROOT / "README.md").read_text(encoding="utf-8")], 500)
    make_gpt(tokenizer.vocab_size, block_size=64, scale=2.0).save_pretrained(tmp_path, tokenizer)
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs(path: Path, model: Path) -> None:
    notebook = read(path)
    if path.name == "generate.ipynb":
        first = code_cells(notebook)[0]
        assert first.source.startswith('NAME = "gpt2"')
        first.source = f"NAME = {str(model)!r}"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()

    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures >= {"demo.ipynb": 2, "generate.ipynb": 1}[path.name]
