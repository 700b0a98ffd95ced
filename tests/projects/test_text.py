"""text: documents of any kind and size to tokens, once; nothing half-made or stale is ever used."""

import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers, trainers

from mingpt_lightning import CharTokenizer, UserError
from mingpt_lightning.datamodule import IGNORE
from mingpt_lightning.errors import ResourceError
from mingpt_lightning.text import language_reference
from mingpt_lightning.tokenizer import BPETokenizer
from projects.text import cache as cache_module
from projects.text import corpus as corpus_module
from projects.text import datamodule as text_module
from projects.text.cache import Cache
from projects.text.corpus import Corpus
from projects.text.datamodule import TextDataModule
from tests.common import ROOT

GPT2 = ROOT.parent / "shared/data/gpt2"
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 100

opened: list[str] | None = None  # the files that were opened while this is a list


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mingpt_lightning/tokens"


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    """A small vocabulary."""
    return BPETokenizer.train(language_reference(), 600)


@pytest.fixture(scope="session")
def tokenizer(bpe: BPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same as a file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(bpe.arguments["tokenizer"], encoding="utf-8")
    return str(path)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text file."""
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def text_of(data: TextDataModule) -> str:
    """All text of a datamodule."""
    return data.tokenizer.decode(data.tokens.tolist())


def documents_of(data: TextDataModule) -> list[str]:
    """Its documents."""
    *documents, rest = text_of(data).split("<|endoftext|>")
    assert rest == ""
    return documents


# What is read


def test_a_file_is_a_document(book: Path, tokenizer: str, bpe: BPETokenizer) -> None:
    data = TextDataModule(str(book), tokenizer=tokenizer, block_size=8)
    assert data.tokens.tolist() == [*bpe.encode(TEXT), bpe.end_of_text]
    assert data.tokens.dtype == np.uint16
    assert (data.vocab_size, data.tokenizer.arguments) == (600, bpe.arguments)


def test_without_a_path_it_is_the_language_reference(tokenizer: str) -> None:
    assert documents_of(TextDataModule(tokenizer=tokenizer)) == language_reference()


def test_globs_and_lists(tmp_path: Path, tokenizer: str) -> None:
    for name in ("b/c/2.txt", "b/1.txt", "a/3.md", "a/[x].txt", "b/empty.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else f"this is the file {name}, a long one" * 5)

    def names(*paths: str) -> list[str]:
        data = TextDataModule([str(tmp_path / path) for path in paths], tokenizer=tokenizer, block_size=2)
        return [re.findall(r"file (\S+),", document)[0] for document in documents_of(data)]

    assert names("**/*.txt") == ["a/[x].txt", "b/1.txt", "b/c/2.txt"]
    assert names("b/*") == ["b/1.txt"]
    assert names("b/**") == ["b/1.txt", "b/c/2.txt"]
    assert names("b/c/2.txt", "a/*") == ["b/c/2.txt", "a/3.md", "a/[x].txt"]
    assert names("b/1.txt", "b/**/*.txt") == ["b/1.txt", "b/c/2.txt"]  # each file once
    assert names("a/[x].txt") == ["a/[x].txt"]
    with pytest.raises(UserError, match=r"empty\.txt is empty .*datamodule\.path"):
        names("b/1.txt", "b/empty.txt")


def test_a_document_per_line(tmp_path: Path, tokenizer: str) -> None:
    texts = ["one\ntwo " * 20, "é🤗\u2028x " * 20, "", "  last"]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"n": 1, "body": text}, ensure_ascii=bool(i)) for i, text in enumerate(texts)]
    path.write_text("\ufeff" + "\r\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]), encoding="utf-8")
    data = TextDataModule(str(path), tokenizer=tokenizer, text_field="body", block_size=2)
    assert documents_of(data) == [text for text in texts if text]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON: .*rows\.jsonl:3\)"),
        ("3", r"no text under 'text'; this is no object \(.*rows\.jsonl:3\)"),
        ('{"body": "x", "id": 3}', r"no text under 'text'; there is body, id \(.*rows\.jsonl:3\).*text_field"),
        ('{"text": null}', r"no text under 'text'.*rows\.jsonl:3\)"),
        ('{"text": "a\\ud800"}', r"character 1 is half of one.*rows\.jsonl:3\)"),
        ("[" * 100_000, r"not JSON: .*rows\.jsonl:3\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, tokenizer: str, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        TextDataModule(str(path), tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


def test_parquet_has_a_document_per_row(tmp_path: Path, tokenizer: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = ["one\ntwo " * 20, None, "é🤗" * 20, ""]
    parquet.write_table(arrow.table({"n": [1, 2, 3, 4], "text": texts}), tmp_path / "rows.parquet")
    data = TextDataModule(str(tmp_path / "rows.parquet"), tokenizer=tokenizer, block_size=2)
    assert documents_of(data) == [texts[0], texts[2]]
    for field in ("body", "n"):
        with pytest.raises(UserError, match=rf"no text under '{field}' .*its columns are n, text"):
            TextDataModule(str(tmp_path / "rows.parquet"), tokenizer=tokenizer, text_field=field)
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read"):
        TextDataModule(str(tmp_path / "bad.parquet"), tokenizer=tokenizer)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_text("PAR1")
    with pytest.raises(UserError, match=r'pip install "mingpt-lightning\[parquet\]"'):
        TextDataModule(str(tmp_path / "rows.parquet"), tokenizer=tokenizer)


def test_what_cannot_be_read_is_refused(tmp_path: Path, book: Path, tokenizer: str, cache: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "rows.jsonl").write_text('{"text": ""}')
    for path, message in [
        ("nowhere.txt", r"nowhere\.txt does not exist \(datamodule\.path\)"),
        ("*.rst", r"no file with text matches .*\*\.rst \(datamodule\.path\)"),
        (".", r"is a folder .*\*\*/\*\.txt"),
        ("empty.txt", r"empty\.txt is empty"),
        ("latin.txt", r"latin\.txt is not UTF-8: byte 0 .*iconv"),
        ("rows.jsonl", r"rows\.jsonl is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            TextDataModule(str(tmp_path / path), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"path=\[\] names no file"):
        TextDataModule([], tokenizer=tokenizer)
    assert all(path.name == "files" for path in cache.iterdir())  # nothing half-made stays


# Windows


def test_splits_are_the_parts_of_the_tokens_in_order(book: Path, tokenizer: str) -> None:
    data = TextDataModule(str(book), tokenizer=tokenizer, block_size=8, split=[0.5, 0.3, 0.2])
    parts = [data.dataset(split).tokens for split in ("train", "val", "test")]
    assert np.concatenate(parts).tolist() == data.tokens.tolist()
    assert [len(part) / len(data.tokens) for part in parts] == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    _, targets = data.dataset("val")[torch.arange(len(data.dataset("val")))]
    assert targets[targets != IGNORE].tolist() == parts[1][1:].tolist()  # each once
    assert len(data.dataset("train")) == len(parts[0]) - 8


def test_training_in_order(book: Path, tokenizer: str) -> None:
    data = TextDataModule(str(book), tokenizer=tokenizer, block_size=8, batch_size=5, shuffle=False, seed=3)
    for _ in range(2):
        batches = list(data.train_dataloader())
        tokens = torch.cat([targets[targets != IGNORE] for _, targets in batches])
        assert tokens.tolist() == data.dataset("train").tokens[1:].tolist()
        assert len(batches[0][0]) == 5


def test_too_short_a_text_is_refused_with_a_block_size_that_works(
    book: Path, tokenizer: str, bpe: BPETokenizer
) -> None:
    length = len(bpe.encode(TEXT)) + 1
    val = int(0.95 * length + 1e-6) - int(0.9 * length)
    message = rf"val split of .*book\.txt has {val} tokens.*block_size={val}\b.*block_size={val - 1} or less"
    with pytest.raises(UserError, match=message):
        TextDataModule(str(book), tokenizer=tokenizer, block_size=val)
    TextDataModule(str(book), tokenizer=tokenizer, block_size=val - 1)


def test_bad_arguments_are_refused_before_any_work(tmp_path: Path, cache: Path) -> None:
    nowhere = str(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"datamodule\.split"):
        TextDataModule(nowhere, split=[0.5, 0.2, 0.2])
    with pytest.raises(UserError, match="block_size=0"):
        TextDataModule(nowhere, block_size=0)
    with pytest.raises(UserError, match=r"datamodule\.revision"):
        TextDataModule(revision="main")
    assert not cache.exists()


# The tokenizer


def test_a_tokenizer_is_trained_once(book: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TextDataModule(str(book), vocab_size=280, block_size=8)
    assert first.vocab_size == 280
    assert first.tokenizer.arguments == BPETokenizer.train([TEXT], 280).arguments
    with monkeypatch.context() as patch:
        patch.setattr(BPETokenizer, "train", None)
        assert TextDataModule(str(book), vocab_size=280, block_size=8).tokenizer.arguments == first.tokenizer.arguments
    assert TextDataModule(str(book), vocab_size=270, block_size=8).vocab_size == 270
    book.write_text(TEXT.upper())
    other = TextDataModule(str(book), vocab_size=280, block_size=8).tokenizer
    assert other.arguments == BPETokenizer.train([TEXT.upper()], 280).arguments
    with pytest.raises(UserError, match="vocab_size=100"):
        TextDataModule(str(book), vocab_size=100)


def test_a_checkpoint_restores_it(book: Path, tokenizer: str) -> None:
    first = TextDataModule(str(book), tokenizer=tokenizer, block_size=8)
    again = TextDataModule(str(book), **first.tokenizer.arguments, block_size=8)
    assert again.tokens.tolist() == first.tokens.tolist()


def test_what_is_no_bpe_is_refused(book: Path, tmp_path: Path) -> None:
    CharTokenizer(TEXT).hugging_face().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not byte-level BPE"):
        TextDataModule(str(book), tokenizer=str(tmp_path))


def test_a_large_vocabulary_takes_four_bytes(book: Path, bpe: BPETokenizer) -> None:
    parts = json.loads(bpe.arguments["tokenizer"])
    parts["model"]["vocab"]["far"] = 2**16
    data = TextDataModule(str(book), tokenizer=json.dumps(parts), block_size=8)
    assert data.tokens.dtype == np.uint32
    assert text_of(data) == TEXT + "<|endoftext|>"
    parts["model"]["vocab"]["far"] = 2**16 - 1
    assert TextDataModule(str(book), tokenizer=json.dumps(parts), block_size=8).tokens.dtype == np.uint16


# Pieces


def whole_and_in_pieces(tokenizer: BPETokenizer, text: str, folder: Path) -> tuple[list[int], list[int], int]:
    """Ids of a text, ids of its pieces, and how many there are."""
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    pieces = list(Corpus(str(path)).pieces(tokenizer))
    assert "".join(piece for piece, _ in pieces) == text
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
    in_pieces = np.concatenate(tokenizer.encode_batch([piece for piece, _ in pieces])).tolist()
    return tokenizer.encode(text), in_pieces, len(pieces)


PATTERNS = {
    "gpt-2": None,
    "gpt-4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "no pieces": r"[\s\S]+",
}


WORDS = [
    "a",
    " b",
    "\nc",
    "_",
    "\n1",
    " 23",
    "é",
    " 日本",
    "'t",
    "  ",
    "\r\n",
    ".",
    ".\n",
    "_\n",
    "\u0301",
    "½",
    "don't",
    "\n",
]


@pytest.fixture(scope="module", params=PATTERNS)
def any_bpe(request: pytest.FixtureRequest) -> BPETokenizer:
    """Tokenizers with different notions of a piece; the last one merges across words."""
    backend = BPETokenizer.train([], 257).hugging_face()
    if pattern := PATTERNS[request.param]:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([" ".join(WORDS * 9), "".join(WORDS * 9), "".join(WORDS[::-1] * 9)], trainer)
    return BPETokenizer(backend.to_str())


@given(
    text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map("".join),
    size=st.integers(1, 3),
    chunk=st.integers(1, 30),
)
def test_pieces_have_the_tokens_of_the_whole(
    any_bpe: BPETokenizer, tmp_path_factory: pytest.TempPathFactory, text: str, size: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "PIECE", size)
        patch.setattr("mingpt_lightning.text.CHUNK", chunk)
        whole, pieces, _ = whole_and_in_pieces(any_bpe, text, tmp_path_factory.mktemp("pieces"))
    assert pieces == whole


def test_a_long_text_is_cut(bpe: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "PIECE", 100)
    tokenizer = BPETokenizer.from_pretrained(GPT2) if GPT2.is_dir() else bpe
    whole, pieces, number = whole_and_in_pieces(tokenizer, "\n".join(language_reference()), tmp_path)
    assert pieces == whole
    assert number > 3000


def test_a_text_without_places_is_cut_all_the_same(
    bpe: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "PIECE", 10)
    monkeypatch.setattr(corpus_module, "LONGEST", 40)
    whole, pieces, number = whole_and_in_pieces(bpe, "日本語" * 100, tmp_path)
    assert number == 8
    assert bpe.decode(pieces) == bpe.decode(whole)


def test_memory_does_not_grow_with_the_text(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BATCH", 2**14)
    monkeypatch.setattr(corpus_module, "PIECE", 2**10)
    monkeypatch.setattr("mingpt_lightning.text.CHUNK", 2**14)

    def peak(times: int) -> int:
        (tmp_path / "long.txt").write_text(TEXT * times)
        tracemalloc.start()
        data = TextDataModule(str(tmp_path / "long.txt"), tokenizer=tokenizer)
        data.dataset("train")[torch.arange(64)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(1)
    assert peak(200) < peak(20) + 100_000  # 900 KB of text, 360 KB of tokens


# The cache


def test_the_second_start_reads_no_text(
    tmp_path: Path, tokenizer: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global opened
    monkeypatch.setattr(cache_module, "SETTLED", 0.0)
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / f"texts/{i}.txt").write_text(f"{i} {TEXT}")
    (tmp_path / "texts/5.jsonl").write_text(json.dumps({"text": TEXT}))
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
        text = TEXT.replace("quick", f"{i}uick")
        book.write_text(text)
        os.utime(book, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [text]
    monkeypatch.setattr(cache_module, "SETTLED", 0.0)
    TextDataModule(str(book), tokenizer=tokenizer)
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    os.replace(other, book)
    assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [TEXT]


def test_the_same_bytes_in_another_form_are_another_text(tmp_path: Path, tokenizer: str) -> None:
    row = json.dumps({"text": TEXT, "body": TEXT.upper()})
    for name in ("rows.txt", "rows.jsonl"):
        (tmp_path / name).write_text(row)
    assert documents_of(TextDataModule(str(tmp_path / "rows.txt"), tokenizer=tokenizer)) == [row]
    assert documents_of(TextDataModule(str(tmp_path / "rows.jsonl"), tokenizer=tokenizer)) == [TEXT]
    upper = TextDataModule(str(tmp_path / "rows.jsonl"), tokenizer=tokenizer, text_field="body")
    assert documents_of(upper) == [TEXT.upper()]


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
    assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [TEXT]
    assert [path.name for path in cache.rglob("*.part")] == []


def test_a_process_that_is_killed_leaves_nothing_in_the_way(book: Path, tokenizer: str, cache: Path) -> None:
    book.write_text(TEXT * 50)
    code = f"""
import sys, time
from mingpt_lightning.tokenizer import BPETokenizer
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
    assert documents_of(TextDataModule(str(book), tokenizer=tokenizer)) == [TEXT * 50]
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


def test_a_text_that_changes_under_way_is_refused(
    book: Path, tokenizer: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BPETokenizer.encode_batch

    def encode_batch(self: BPETokenizer, texts: list[str]) -> list[np.ndarray]:
        book.write_text(TEXT + "more")
        return real(self, texts)

    def batches(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
        return ([piece] for piece in pieces)

    monkeypatch.setattr(BPETokenizer, "encode_batch", encode_batch)
    monkeypatch.setattr(text_module, "batches", batches)
    with pytest.raises(UserError, match=r"book\.txt changed while it was read"):
        TextDataModule(str(book), tokenizer=tokenizer)
    assert not list(cache.rglob("tokens.bin"))


def test_a_text_that_vanishes_is_refused(book: Path, tmp_path: Path) -> None:
    corpus = Corpus(str(book))
    book.unlink()
    with pytest.raises(UserError, match=r"book\.txt cannot be read: No such file"):
        corpus.identity(Cache(tmp_path / "cache"))
