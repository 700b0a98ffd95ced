"""text: documents of any size become windows of tokens."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from mingpt_lightning import CharTokenizer, UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.datamodule import IGNORE
from projects.text import corpus as corpus_module
from projects.text import datamodule as text_module
from projects.text.datamodule import TextDataModule
from tests.common import FOX, text_of


def test_splits_are_the_parts_of_the_tokens_in_order(book: Path, tokenizer: str) -> None:
    data = TextDataModule(str(book), tokenizer=tokenizer, block_size=8, split=[0.5, 0.3, 0.2])
    parts = [data.dataset(split).tokens for split in ("train", "val", "test")]
    assert np.concatenate(parts).tolist() == data.tokens.tolist()
    assert [len(part) / len(data.tokens) for part in parts] == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    _, targets = data.dataset("val")[torch.arange(len(data.dataset("val")))]
    assert targets[targets != IGNORE].tolist() == parts[1][1:].tolist()  # each once
    assert len(data.dataset("train")) == len(parts[0]) - 8


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_begin_with_a_document(tmp_path: Path, tokenizer: str, bpe: BPETokenizer, seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 60, 400)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "the dog " * length}) + "\n" for length in lengths))
    data = TextDataModule(str(path), tokenizer=tokenizer, block_size=8, split=[0.8, 0.1, 0.1])
    parts = [data.dataset(split).tokens for split in ("train", "val", "test")]
    assert np.concatenate(parts).tolist() == data.tokens.tolist()
    assert [part[-1] for part in parts] == [bpe.end_of_text] * 3
    assert [len(part) / len(data.tokens) for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_few_documents_keep_the_fractions(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": FOX}) + "\n" for _ in range(2)))
    data = TextDataModule(str(path), tokenizer=tokenizer, block_size=8)
    parts = [data.dataset(split).tokens for split in ("train", "val", "test")]
    assert [len(part) / len(data.tokens) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.001)


def test_validation_and_test_have_files_of_their_own(tmp_path: Path, book: Path, tokenizer: str) -> None:
    for name in ("val", "test"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} " * 99)
    val, test = str(tmp_path / "val.txt"), str(tmp_path / "*est.txt")
    data = TextDataModule(str(book), val_path=val, test_path=test, tokenizer=tokenizer, block_size=8)
    texts = [data.tokenizer.decode(data.dataset(part).tokens.tolist()) for part in ("train", "val", "test")]
    assert texts == [text + "<|endoftext|>" for text in (FOX, "the val " * 99, "the test " * 99)]
    only = TextDataModule(str(book), val_path=val, tokenizer=tokenizer, block_size=8)
    lengths = [len(only.dataset(part).tokens) for part in ("train", "test")]
    assert sum(lengths) == len(only.tokens)
    assert lengths[0] / sum(lengths) == pytest.approx(0.9 / 0.95, abs=0.001)
    assert len({data.fingerprint, only.fingerprint, TextDataModule(str(book), tokenizer=tokenizer).fingerprint}) == 3
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist \(val_path\)"):
        TextDataModule(str(book), val_path=str(tmp_path / "nowhere.txt"), tokenizer=tokenizer)
    (tmp_path / "short.txt").write_text("one two")
    with pytest.raises(UserError, match=r"the test split of .*short\.txt has \d tokens, too few for block_size=64"):
        TextDataModule(str(book), test_path=str(tmp_path / "short.txt"), tokenizer=tokenizer)


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
