"""text: tokens are made once; nothing half-made or stale is ever used."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mingpt_lightning import UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.errors import ResourceError
from projects.text import cache as cache_module
from projects.text import datamodule as text_module
from projects.text.cache import Cache
from projects.text.datamodule import TextDataModule
from tests.common import FOX, ROOT, documents_of

opened: list[str] | None = None  # the files that were opened while this is a list


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(watch)


def test_the_second_start_reads_no_text(
    tmp_path: Path, tokenizer: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global opened
    monkeypatch.setattr(cache_module, "SETTLED", 0.0)
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / f"texts/{i}.txt").write_text(f"{i} {FOX}")
    (tmp_path / "texts/5.jsonl").write_text(json.dumps({"text": FOX}))
    counts = []
    for _ in range(2):
        opened = []
        data = TextDataModule(str(tmp_path / "texts/*"), tokenizer=tokenizer)
        data.dataset("train")[torch.arange(9)]
        counts.append(sum("/texts/" in path for path in opened))
        opened = None
    assert counts[0] >= 6
    assert counts[1] == 0


def test_another_text_is_never_taken_from_the_cache(
    book: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = book.stat()
    for i in range(10):  # the same size and time of change
        text = FOX.replace("quick", f"{i}uick")
        book.write_text(text)
        os.utime(book, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [text]
    monkeypatch.setattr(cache_module, "SETTLED", 0.0)
    TextDataModule(str(book), tokenizer=tokenizer)
    other = tmp_path / "other.txt"
    other.write_text(FOX)
    os.replace(other, book)
    assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [FOX]


def test_the_same_bytes_in_another_form_are_another_text(tmp_path: Path, tokenizer: str) -> None:
    row = json.dumps({"text": FOX, "body": FOX.upper()})
    for name in ("rows.txt", "rows.jsonl"):
        (tmp_path / name).write_text(row)
    assert documents_of(TextDataModule(str(tmp_path / "rows.txt"), tokenizer=tokenizer)) == [row]
    assert documents_of(TextDataModule(str(tmp_path / "rows.jsonl"), tokenizer=tokenizer)) == [FOX]
    upper = TextDataModule(str(tmp_path / "rows.jsonl"), tokenizer=tokenizer, text_field="body")
    assert documents_of(upper) == [FOX.upper()]


def test_the_cache_may_be_elsewhere(book: Path, tokenizer: str, tmp_path: Path, cache: Path) -> None:
    TextDataModule(str(book), tokenizer=tokenizer, cache_dir=str(tmp_path / "mine"))
    assert list((tmp_path / "mine").rglob("tokens.bin"))
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["tokens.bin", "meta.json", "no meta.json"])
def test_a_damaged_cache_is_made_again(book: Path, tokenizer: str, cache: Path, damage: str) -> None:
    TextDataModule(str(book), tokenizer=tokenizer)
    (tokens,) = cache.rglob("tokens.bin")
    if damage == "no meta.json":
        (tokens.parent / "meta.json").unlink()
    else:
        os.truncate(tokens.parent / damage, 10)
    assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [FOX]
    assert [path.name for path in cache.rglob("*.part")] == []


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_in_the_way(book: Path, tokenizer: str, cache: Path) -> None:
    book.write_text(FOX * 50)
    code = f"""
import sys, time
from mingpt_lightning.bpe import BPETokenizer
from projects.text import corpus, datamodule
datamodule.BATCH, corpus.PIECE = 20_000, 1_000
real, calls = BPETokenizer.encode_batch, []
def encode_batch(self, texts):
    calls.append(texts)
    if len(calls) == 4:
        print("half way", flush=True)
        time.sleep(60)
    return real(self, texts)
BPETokenizer.encode_batch = encode_batch
datamodule.TextDataModule({str(book)!r}, tokenizer={tokenizer!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(signal.SIGKILL)
    (leftover,) = cache.glob("*.part")
    assert (leftover / "tokens.bin").stat().st_size > 1000
    assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [FOX * 50]
    assert leftover.exists()  # it could be another process that is still at work
    for path in (leftover / "tokens.bin", leftover):
        os.utime(path, (0, 0))
    TextDataModule(None, tokenizer=tokenizer)
    assert not leftover.exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_of_two_processes_either_wins(tmp_path: Path, damaged: bool) -> None:
    cache = Cache(tmp_path)

    def make(folder: Path) -> None:
        (folder / "a").write_text("first")

    def make_late(folder: Path) -> None:
        (folder / "a").write_text("other")
        assert (cache.entry("key", make) / "a").read_text() == "first"

    if damaged:
        os.truncate(cache.entry("key", make) / "a", 0)
    assert (cache.entry("key", make_late) / "a").read_text() == "first"
    assert (cache.entry("key", make_late) / "a").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


def test_a_cache_that_cannot_be_written_is_named(book: Path, tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ResourceError, match=r"cannot write .*cache.*XDG_CACHE_HOME"):
        TextDataModule(str(book), tokenizer=tokenizer)


@pytest.mark.skipif(os.name != "posix", reason="the home folder of a user that the system doesn't know")
def test_a_user_without_a_home_is_told_what_to_set(
    book: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)  # as for a container's user by number
    with pytest.raises(ResourceError, match=r"this user has no home folder \(cache_dir\)\. Set XDG_CACHE_HOME to"):
        TextDataModule(str(book), tokenizer=tokenizer)
    TextDataModule(str(book), tokenizer=tokenizer, cache_dir=str(tmp_path / "mine"))
    monkeypatch.setenv("HOME", "/dev/null/none")  # a home that doesn't exist
    with pytest.raises(
        ResourceError, match=r"cannot write /dev/null/none.*\(cache_dir\)\. Set XDG_CACHE_HOME, or cache"
    ):
        TextDataModule(str(book), tokenizer=tokenizer)


def test_a_text_that_changes_under_way_is_refused(
    book: Path, tokenizer: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BPETokenizer.encode_batch

    def encode_batch(self: BPETokenizer, texts: list[str]) -> list[np.ndarray]:
        book.write_text(FOX + "more")
        return real(self, texts)

    def batches(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
        return ([piece] for piece in pieces)

    monkeypatch.setattr(BPETokenizer, "encode_batch", encode_batch)
    monkeypatch.setattr(text_module, "batches", batches)
    with pytest.raises(UserError, match=r"book\.txt changed while it was read"):
        TextDataModule(str(book), tokenizer=tokenizer)
    assert not list(cache.rglob("tokens.bin"))
