"""text: documents of any kind and size become windows of tokens."""

import json
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from mingpt_lightning import CharTokenizer, UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.datamodule import IGNORE
from mingpt_lightning.text import language_reference
from projects.text import corpus as corpus_module
from projects.text import datamodule as text_module
from projects.text.datamodule import TextDataModule
from tests.common import FOX, documents_of, text_of

# What is read


def test_a_file_is_a_document(book: Path, tokenizer: str, bpe: BPETokenizer) -> None:
    data = TextDataModule(str(book), tokenizer=tokenizer, block_size=8)
    assert data.tokens.tolist() == [*bpe.encode(FOX), bpe.end_of_text]
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
    with pytest.raises(UserError, match=r"empty\.txt is empty .*path"):
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
        ('{"text": "a\\ud800"}', r"character 1 is a lone surrogate.*rows\.jsonl:3\)"),
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
    import pyarrow as arrow
    from pyarrow import parquet

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
        ("nowhere.txt", r"nowhere\.txt does not exist \(path\)"),
        ("*.rst", r"no file with text matches .*\*\.rst \(path\)"),
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
    length = len(bpe.encode(FOX)) + 1
    val = int(0.95 * length + 1e-6) - int(0.9 * length)
    message = rf"val split of .*book\.txt has {val} tokens.*block_size={val}\b.*block_size={val - 1} or less"
    with pytest.raises(UserError, match=message):
        TextDataModule(str(book), tokenizer=tokenizer, block_size=val)
    TextDataModule(str(book), tokenizer=tokenizer, block_size=val - 1)


def test_bad_arguments_are_refused_before_any_work(tmp_path: Path, cache: Path) -> None:
    nowhere = str(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"split"):
        TextDataModule(nowhere, split=[0.5, 0.2, 0.2])
    with pytest.raises(UserError, match="block_size=0"):
        TextDataModule(nowhere, block_size=0)
    with pytest.raises(UserError, match=r"revision"):
        TextDataModule(revision="main")
    assert not cache.exists()


# The tokenizer


def test_a_tokenizer_is_trained_once(book: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TextDataModule(str(book), vocab_size=280, block_size=8)
    assert first.vocab_size == 280
    assert first.tokenizer.arguments == BPETokenizer.train([FOX], 280).arguments
    with monkeypatch.context() as patch:
        patch.setattr(BPETokenizer, "train", None)
        assert TextDataModule(str(book), vocab_size=280, block_size=8).tokenizer.arguments == first.tokenizer.arguments
    assert TextDataModule(str(book), vocab_size=270, block_size=8).vocab_size == 270
    book.write_text(FOX.upper())
    other = TextDataModule(str(book), vocab_size=280, block_size=8).tokenizer
    assert other.arguments == BPETokenizer.train([FOX.upper()], 280).arguments
    with pytest.raises(UserError, match="vocab_size=100"):
        TextDataModule(str(book), vocab_size=100)


def test_a_checkpoint_restores_it(book: Path, tokenizer: str) -> None:
    first = TextDataModule(str(book), tokenizer=tokenizer, block_size=8)
    again = TextDataModule(str(book), **first.tokenizer.arguments, block_size=8)
    assert again.tokens.tolist() == first.tokens.tolist()


def test_what_is_no_bpe_is_refused(book: Path, tmp_path: Path) -> None:
    CharTokenizer(FOX).hugging_face().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="this is a vocabulary of characters"):
        TextDataModule(str(book), tokenizer=str(tmp_path))


def test_a_large_vocabulary_takes_four_bytes(book: Path, bpe: BPETokenizer) -> None:
    parts = json.loads(bpe.arguments["tokenizer"])
    parts["model"]["vocab"]["far"] = 2**16
    data = TextDataModule(str(book), tokenizer=json.dumps(parts), block_size=8)
    assert data.tokens.dtype == np.uint32
    assert text_of(data) == FOX + "<|endoftext|>"
    parts["model"]["vocab"]["far"] = 2**16 - 1
    assert TextDataModule(str(book), tokenizer=json.dumps(parts), block_size=8).tokens.dtype == np.uint16


def test_memory_does_not_grow_with_the_text(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BATCH", 2**14)
    monkeypatch.setattr(corpus_module, "PIECE", 2**10)
    monkeypatch.setattr("mingpt_lightning.text.CHUNK", 2**14)

    def peak(times: int) -> int:
        (tmp_path / "long.txt").write_text(FOX * times)
        tracemalloc.start()
        data = TextDataModule(str(tmp_path / "long.txt"), tokenizer=tokenizer)
        data.dataset("train")[torch.arange(64)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(1)
    assert peak(200) < peak(20) + 100_000  # 900 KB of text, 360 KB of tokens
