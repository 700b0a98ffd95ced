"""text: long documents are cut where no token of the whole would cross."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers, trainers

from mingpt_lightning import UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.text import language_reference
from projects.text import corpus as corpus_module
from projects.text.cache import Cache
from projects.text.corpus import Corpus

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
    whole, pieces, number = whole_and_in_pieces(bpe, "\n".join(language_reference()), tmp_path)
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


def test_a_text_that_vanishes_is_refused(book: Path, tmp_path: Path) -> None:
    corpus = Corpus(str(book))
    book.unlink()
    with pytest.raises(UserError, match=r"book\.txt cannot be read: No such file"):
        corpus.identity(Cache(tmp_path / "cache"))
