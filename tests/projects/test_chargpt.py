"""chargpt: text from anywhere to windows of tokens, each token scored once."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mingpt_lightning import UserError
from mingpt_lightning import text as text_files
from mingpt_lightning.errors import ResourceError
from mingpt_lightning.text import read_text
from projects.chargpt.datamodule import CharDataModule
from tests.common import FOX, text_of

TEXT = FOX[: len(FOX) // 5]


@pytest.fixture
def book(book: Path) -> Path:
    """A shorter text file."""
    book.write_text(TEXT, encoding="utf-8")
    return book


def test_batches_are_int64(book: Path) -> None:
    for tensor in CharDataModule(str(book), block_size=8).dataset("train")[torch.arange(3)]:
        assert tensor.dtype == torch.int64


def test_splits_are_the_parts_of_the_text_in_order(book: Path) -> None:
    datamodule = CharDataModule(str(book), block_size=8, split=[0.5, 0.3, 0.2])
    parts = [datamodule.dataset(split).tokens for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [450, 270, 180]
    assert [len(datamodule.dataset(split)) for split in ("train", "val", "test")] == [442, 34, 23]  # every 8th, later
    assert datamodule.tokenizer.decode(np.concatenate(parts).tolist()) == TEXT


def test_an_epoch_is_as_many_windows_as_cover_the_text(book: Path) -> None:
    datamodule = CharDataModule(str(book), block_size=8, batch_size=4)
    assert datamodule.epoch_size == 102  # of 810 characters, at 802 places
    assert len(datamodule.train_dataloader()) == 25


def test_a_split_may_be_left_out(book: Path) -> None:
    datamodule = CharDataModule(str(book), split=[0.9, 0.1, 0.0])
    assert len(datamodule.dataset("test")) == 0
    assert len(datamodule.dataset("val")) == 2  # 90 characters


@pytest.mark.parametrize("split", [[0.5, 0.5], [0.9, 0.2, -0.1], [0.0, 0.5, 0.5], [0.5, 0.2, 0.2]])
def test_shares_that_do_not_add_up_are_refused(book: Path, split: list[float]) -> None:
    with pytest.raises(UserError, match=r"split"):
        CharDataModule(str(book), split=split)


def test_too_short_a_text_is_refused_with_a_block_size_that_works(book: Path) -> None:
    with pytest.raises(UserError, match=r"val split .* has 45 characters.*block_size=64.*block_size=44 or less"):
        CharDataModule(str(book), block_size=64)
    CharDataModule(str(book), block_size=44)


# Reading


def test_the_vocabulary_is_sorted(book: Path) -> None:
    datamodule = CharDataModule(str(book), block_size=8)
    characters = datamodule.tokenizer.arguments["characters"]
    assert list(characters) == sorted(set(TEXT))
    assert datamodule.vocab_size == len(set(TEXT))
    assert text_of(datamodule) == TEXT


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(TEXT.encode("utf-8-sig"))
    assert text_of(CharDataModule(str(path), block_size=8)) == TEXT


def test_line_ends_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"one\r\ntwo\r" * 20)
    assert text_of(CharDataModule(str(path), block_size=4)) == "one\r\ntwo\r" * 20


def test_a_long_text_is_read_in_pieces(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CharDataModule(str(book), block_size=8)
    monkeypatch.setattr(text_files, "CHUNK", 7)
    assert len(list(read_text(book))) > 100
    in_pieces = CharDataModule(str(book), block_size=8)
    assert in_pieces.tokens.tolist() == whole.tokens.tolist()
    assert in_pieces.tokens.dtype == np.uint8  # a byte a token


def test_a_missing_file_is_refused_with_its_whole_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.txt does not exist .*path") as caught:
        CharDataModule(str(tmp_path / "nowhere.txt"))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        CharDataModule(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"empty.txt is empty .*path"):
        CharDataModule(str(path))


def test_one_character_is_too_few(tmp_path: Path, book: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a" * 1000)
    with pytest.raises(UserError, match=r"a\.txt .*nothing to learn"):
        CharDataModule(str(path))
    for characters in ("", "T"):
        with pytest.raises(UserError, match=r"book\.txt .*nothing to learn"):
            CharDataModule(str(book), characters=characters, on_unknown="skip")


# Unknown characters


def test_an_unknown_character_in_the_text_is_named(tmp_path: Path, book: Path) -> None:
    book.write_text(TEXT + "é", encoding="utf-8")
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\).*book\.txt.*on_unknown=skip"):
        CharDataModule(str(book), characters=TEXT)


def test_an_unknown_character_may_be_skipped_or_replaced(book: Path) -> None:
    vocabulary = "".join(set(TEXT) - {"q"})
    skipped = CharDataModule(str(book), characters=vocabulary, on_unknown="skip", block_size=8)
    assert text_of(skipped) == TEXT.replace("q", "")
    replaced = CharDataModule(str(book), characters=vocabulary, on_unknown="k", block_size=8)
    assert text_of(replaced) == TEXT.replace("q", "k")


# Where the text comes from


def test_the_default_text_is_the_python_reference() -> None:
    from pydoc_data.topics import topics

    datamodule = CharDataModule()
    text = text_of(datamodule)
    assert len(text) > 300_000
    assert all(topic in text for topic in topics.values())


class Web:
    """A web server on this machine that counts its visitors."""

    def __init__(self) -> None:
        self.content = TEXT.encode()
        self.status = 200
        self.promised_more = 0
        self.visits = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web=self))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.running = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/book.txt"

    def stop(self) -> None:
        if self.running:
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()
        self.running = False


class Handler(BaseHTTPRequestHandler):
    """Answers everything with the same content."""

    def __init__(self, *arguments: Any, web: Web):
        self.web = web
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.web.visits += 1
        self.send_response(self.web.status)
        self.send_header("Content-Length", str(len(self.web.content) + self.web.promised_more))
        self.end_headers()
        self.wfile.write(self.web.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web = Web()
    yield web
    web.stop()


def cached(tmp_path: Path) -> list[Path]:
    """The files in the cache folder."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_url_is_fetched_once(web: Web, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(web.content).hexdigest()
    assert text_of(CharDataModule(url=web.url, sha256=sha256, block_size=8)) == TEXT
    assert text_of(CharDataModule(url=web.url, sha256=sha256, block_size=8)) == TEXT
    assert web.visits == 1
    web.stop()
    assert text_of(CharDataModule(url=web.url, sha256=sha256, block_size=8)) == TEXT
    assert len(cached(tmp_path)) == 1


def test_a_path_comes_before_a_url(web: Web, book: Path) -> None:
    CharDataModule(str(book), url=web.url, block_size=8)
    assert web.visits == 0


def test_another_file_than_expected_is_refused(web: Web, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{web.url} is not the expected file.*set path"):
        CharDataModule(url=web.url, sha256="0" * 64, block_size=8)
    assert cached(tmp_path) == []


def test_a_file_of_another_hash_is_not_taken_from_the_cache(web: Web) -> None:
    CharDataModule(url=web.url, block_size=8)
    with pytest.raises(UserError, match="is not the expected file"):
        CharDataModule(url=web.url, sha256="0" * 64, block_size=8)


def test_without_server_or_cache_the_error_names_the_way_out(web: Web, tmp_path: Path) -> None:
    web.stop()
    with pytest.raises(ResourceError, match=rf"cannot fetch {web.url}.*set path"):
        CharDataModule(url=web.url)
    assert cached(tmp_path) == []


def test_an_error_of_the_server_is_not_a_text(web: Web, tmp_path: Path) -> None:
    web.status = 404
    with pytest.raises(ResourceError, match=rf"cannot fetch {web.url}.*404.*set path"):
        CharDataModule(url=web.url)
    assert cached(tmp_path) == []


def test_half_a_file_is_refused(web: Web, tmp_path: Path) -> None:
    web.promised_more = 1000
    with pytest.raises(ResourceError, match=rf"cannot fetch {web.url}.*set path"):
        CharDataModule(url=web.url)
    assert cached(tmp_path) == []


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"cannot fetch book\.txt.*set path"):
        CharDataModule(url="book.txt")


def test_a_cache_that_cannot_be_written_is_named(web: Web, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ResourceError, match=r"cannot write .*cache.*XDG_CACHE_HOME"):
        CharDataModule(url=web.url, block_size=8)
