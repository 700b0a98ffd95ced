"""Pretrained models and texts for the command line."""

import shutil
from pathlib import Path

import pytest

from mingpt_lightning import GPT, BPETokenizer
from tests.common import CATS, Cli, MakeGPT


@pytest.fixture(scope="session")
def saved_model(make_gpt: MakeGPT, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BPETokenizer]:
    """A pretrained model, to be copied, and its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("pretrained") / "gpt", BPETokenizer.train([CATS], 274)
    make_gpt(tokenizer.vocab_size, block_size=32, scale=2.0).save_pretrained(folder, tokenizer)
    return folder, tokenizer


@pytest.fixture
def model(cli: Cli, make_gpt: MakeGPT, saved_model: tuple[Path, BPETokenizer]) -> tuple[GPT, BPETokenizer]:
    """A pretrained model in the folder `gpt`, and the same in Python."""
    folder, tokenizer = saved_model
    shutil.copytree(folder, "gpt")
    return make_gpt(tokenizer.vocab_size, block_size=32, scale=2.0), tokenizer


@pytest.fixture
def book(cli: Cli) -> None:
    """A text file of the words that the pretrained model knows."""
    Path("book.txt").write_text(CATS * 20)
