"""The notebooks at the repository root run from top to bottom, and the outputs stored in them are what a run gives.

Text is compared cell by cell and character by character. So a notebook prints only what every machine prints: counts,
comparisons, numbers rounded until they agree, and what was computed in double precision. What float32 training makes
different from one processor to the next is drawn: of a picture, only its size and number of axes are compared, not its
pixels. Standard error is neither stored nor compared; warnings and progress bars are about a machine.

No run sees a network or a cache of the hub, so generate.ipynb shows its stand-in on every machine.

To run both notebooks and store what they give, after a change to them or to what they use:

    python tests/test_notebooks.py

Then look at the pictures, and at whether the text around them still describes them.
"""

import base64
import difflib
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
PICTURES = {"demo.ipynb": 3, "generate.ipynb": 1}
STORE = f"python {Path(__file__).relative_to(ROOT)}"
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(path: Path) -> NotebookNode:
    """The notebook after a run without a network, with the outputs that are worth storing and nothing else new."""
    notebook, fresh = read(path), read(path)
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": folder, "HF_HUB_CACHE": folder, "IPYTHONDIR": folder}
        client = NotebookClient(
            fresh,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(ROOT)}},
            coalesce_streams=True,
            record_timing=False,
        )
        client.execute(env=env)
    for cell, executed in zip(code_cells(notebook), code_cells(fresh), strict=True):
        cell.execution_count = None
        cell.outputs = [output for output in executed.outputs if output.get("name") != "stderr"]
    return notebook


def text(cell: NotebookNode) -> list[str]:
    """The lines that a cell's outputs show; of a picture, the words that stand for it."""
    parts = [output.text if "text" in output else output.data["text/plain"] for output in cell.outputs]
    return "\n".join(part.removesuffix("\n") for part in parts).splitlines()


def test_both_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == list(PICTURES)


@each_notebook
def test_stored_output_is_tidy(path: Path) -> None:
    notebook = read(path)
    assert code_cells(notebook)[0].source.startswith(("# The task", 'NAME = "gpt2"'))
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}, "a version of Python was stored"
    for cell in code_cells(notebook):
        assert cell.execution_count is None, f"cell {cell.id} has an execution count; run `{STORE}`"
        assert not cell.metadata, f"cell {cell.id} has metadata; run `{STORE}`"
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data"), f"cell {cell.id}: {output.output_type}"
            assert output.get("name") != "stderr", f"cell {cell.id} has stored warnings; run `{STORE}`"
        assert not re.search(r"/(home|Users|root|tmp)/", "\n".join(text(cell))), f"cell {cell.id} names a path"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "data" in output]
    assert len(pictures) == PICTURES[path.name]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert path.stat().st_size < 300_000, "the repository keeps each version; make the pictures smaller"


@pytest.mark.slow
@each_notebook
def test_stored_output_is_what_a_run_gives(path: Path) -> None:
    for stored, fresh in zip(code_cells(read(path)), code_cells(run(path)), strict=True):
        difference = "\n".join(difflib.unified_diff(text(stored), text(fresh), "stored", "fresh", lineterm=""))
        assert not difference, (
            f"{path.name}, cell {stored.id}: the stored output is not what it gives now.\n{difference}\n"
            f"If the new one is right, run `{STORE}` and commit the notebooks."
        )


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        nbformat.write(run(notebook), notebook)
