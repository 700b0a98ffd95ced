"""A text, a small vocabulary and an empty cache for the projects that read text."""

from pathlib import Path

import pytest

from mingpt_lightning import BPETokenizer
from tests.common import FOX


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text file."""
    path = tmp_path / "book.txt"
    path.write_text(FOX, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(bpe: BPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small vocabulary as a file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(bpe.arguments["tokenizer"], encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty; returns where tokens are kept in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mingpt_lightning/tokens"
