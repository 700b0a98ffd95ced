"""Hugging Face's GPT-2, which ours is compared with."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@pytest.fixture(scope="session")
def reference() -> "GPT2LMHeadModel":
    """GPT-2 with random weights; no test changes it."""
    from tests.gpt2_files import make_reference

    return make_reference()


@pytest.fixture
def folder(reference: "GPT2LMHeadModel", tmp_path: Path) -> Path:
    """A model in the plainest layout."""
    from tests.gpt2_files import write_layout

    write_layout(reference, tmp_path, ("safetensors", True, False, False))
    return tmp_path
