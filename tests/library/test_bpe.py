"""Byte-level BPE: any text to tokens and back without loss, the same as everybody else's."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mingpt_lightning import Tokenizer, UserError
from mingpt_lightning.bpe import LONGEST, BPETokenizer, read_tokenizer
from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.text import language_reference
from tests.common import FOX, ODD

odd_text = st.text(st.one_of(st.sampled_from("ab '\n" + ODD), st.characters(exclude_categories=["Cs"])), max_size=40)
MERGES = {
    **{"r e": 260, "a t": 265, "Ġ w": 266, "a r": 283, "l l": 297, "Ġ I": 314, "Ġ A": 317, "' s": 338, "n d": 358},
    **{"Ġ 2": 362, "0 0": 405, "Ġ K": 509, "ĠI t": 632, "e ll": 695, "at h": 776, "ĠA nd": 843, "Ġ :": 1058},
    **{"' m": 1101, "Ġ2 0": 1160, "2 2": 1828, "! !": 3228, "ar p": 5117, "ð Ł": 8582, "ath y": 10036},
    **{"ĠAnd re": 10948, "ell o": 11109, "Ġ ðŁ": 12520, "H ello": 15496, "Ġ20 22": 33160, "$ {": 38892},
}
"""Merges of GPT-2, and the ids of what they make: as many as a test needs."""


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    """GPT-2's vocabulary without most of its merges."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {character: token for token, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {merge.replace(" ", ""): token for merge, token in MERGES.items()}
    (folder / "encoder.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": 50256}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in MERGES), encoding="utf-8")
    return BPETokenizer.from_pretrained(folder)


# Byte-level BPE


@given(text=odd_text)
def test_any_text_comes_back(bpe: BPETokenizer, text: str) -> None:
    tokens = bpe.encode(text)
    assert bpe.decode(tokens) == text
    assert "".join(bpe.stream(iter(tokens))) == text
    assert b"".join(bpe.token_bytes[token] for token in tokens) == text.encode()
    assert bpe.byte_lengths[tokens].sum() == len(text.encode())
    (array,) = bpe.encode_batch([text])
    assert array.tolist() == tokens


@given(tokens=st.lists(st.integers(0, 620), max_size=30))
def test_any_tokens_have_a_text(bpe: BPETokenizer, tokens: list[int]) -> None:
    text = bpe.decode(tokens)
    assert "".join(bpe.stream(iter(tokens))) == text
    assert text == bpe.hugging_face().decode([token for token in tokens if token < 600], skip_special_tokens=False)


@given(text=odd_text)
def test_a_stream_never_splits_a_character(bpe: BPETokenizer, text: str) -> None:
    assert "\ufffd" not in "|".join(bpe.stream(bpe.encode(text.replace("\ufffd", ""))))


def test_a_stream_comes_as_it_is_made(bpe: BPETokenizer) -> None:
    taken = []
    pieces = bpe.stream(taken.append(token) or token for token in bpe.encode("one two three"))
    assert next(pieces)
    assert len(taken) == 1
    emoji = bpe.encode("🤗a")
    assert list(bpe.stream(emoji)) == ["🤗", "a"]
    assert "".join(bpe.stream(emoji[:2])) == bpe.decode(emoji[:2]) == "\ufffd"


def test_half_a_character_is_refused_at_its_place(bpe: BPETokenizer) -> None:
    message = r"^character 2 is a lone surrogate: '\\ud83e' \(U\+D83E\).*Remove it\.$"
    for use in (bpe.encode, bpe.show, lambda text: bpe.encode_batch(["fine", text])):
        with pytest.raises(UserError, match=message):
            use("é \ud83eb")


def test_end_of_text_is_one_token_without_bytes(bpe: BPETokenizer) -> None:
    tokens = bpe.encode("a<|endoftext|>b")
    assert len(tokens) == 3
    assert tokens[1] == bpe.end_of_text == bpe.start_token == bpe.vocab_size - 1
    assert bpe.stop_tokens == (bpe.end_of_text,)
    assert bpe.byte_lengths[tokens].tolist() == [1, 0, 1]
    assert bpe.decode(tokens) == "a<|endoftext|>b"
    assert bpe.encode_batch(["", "a<|endoftext|>"])[1].tolist() == tokens[:2]


def test_a_vocabulary_may_lack_the_end_of_text(bpe: BPETokenizer) -> None:
    parts = json.loads(bpe.arguments["tokenizer"])
    parts["added_tokens"] = []
    tokenizer = BPETokenizer(json.dumps(parts))
    assert (tokenizer.end_of_text, tokenizer.start_token, tokenizer.stop_tokens) == (None, None, ())
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
    assert tokenizer.vocab_size == 599


def test_ids_beyond_the_vocabulary_are_nothing(bpe: BPETokenizer) -> None:
    assert bpe.decode([*bpe.encode("a"), 600, 10**6, *bpe.encode("b")]) == "ab"


def test_bpe_survives_a_checkpoint(bpe: BPETokenizer) -> None:
    again = Tokenizer.from_state(json.loads(json.dumps(bpe.state())))
    assert isinstance(again, BPETokenizer)
    assert again.state() == bpe.state()
    assert again.encode("def f(x): return x") == bpe.encode("def f(x): return x")


def test_the_work_is_shown(bpe: BPETokenizer) -> None:
    text = "Hello,  wörld 🤗\n<|endoftext|>"
    header, *rows = bpe.show(text).splitlines()
    assert header.split() == ["piece", "bytes", "tokens", "ids"]
    assert [row.split("  ")[0] for row in rows] == [
        "'Hello'", "','", "' '", "' wörld'", "' 🤗'", r"'\n'", "'<|endoftext|>'"
    ]  # fmt: skip
    assert "20 77 c3 b6 72 6c 64" in rows[3]
    ids = [int(word) for row in rows for word in row.rsplit("  ", 1)[1].split()]
    assert ids == bpe.encode(text)
    assert rows[3].split("  ")[-2].strip().count("·") == len(bpe.encode(" wörld")) - 1


# Training


def test_training_gives_what_was_asked_for(bpe: BPETokenizer) -> None:
    assert bpe.vocab_size == len(set(bpe.token_bytes)) == 600
    assert {bytes([byte]) for byte in range(256)} <= set(bpe.token_bytes)
    assert bpe.token_bytes[-1] == b"<|endoftext|>"
    text = "\n".join(language_reference())
    assert len(bpe.encode(text)) < 0.6 * len(text.encode())


def test_training_is_repeatable(bpe: BPETokenizer) -> None:
    assert BPETokenizer.train(iter(language_reference()), 600).state() == bpe.state()


def test_little_text_has_few_merges() -> None:
    assert BPETokenizer.train(["ab ab ab"], 1000).vocab_size == 256 + 2 + 1  # "ab", "Ġab"
    assert BPETokenizer.train([], 257).vocab_size == 257


@pytest.mark.parametrize("vocab_size", [256, 0, -1, 300.0, True])
def test_a_vocabulary_has_room_for_all_bytes(vocab_size: Any) -> None:
    with pytest.raises(UserError, match=f"vocab_size={vocab_size} is too small .*257"):
        BPETokenizer.train(["text"], vocab_size)


def test_half_a_character_is_no_text_to_train_on() -> None:
    with pytest.raises(UserError, match="character 0 is a lone surrogate"):
        BPETokenizer.train(["fine", "\ud800"], 300)


# Files


def test_no_merge_is_spent_on_separators_of_documents() -> None:
    text = "a<|endoftext|>b<|endoftext|>" * 50
    assert BPETokenizer.train([text], 400).vocab_size == 257
    assert BPETokenizer.train([text], 300).encode("b<|endoftext|>")[-1] == 256


def test_text_without_spaces_is_learned_in_pieces() -> None:
    letters = random.Random(0).choices("ACGT", k=300_000)  # as one word, it would take half an hour
    tokenizer = BPETokenizer.train(["".join(letters)], 400)
    assert tokenizer.vocab_size == 400
    assert len(tokenizer.encode("".join(letters[:1000]))) < 500
    words = "a " + "b" * LONGEST + " " + "c" * LONGEST * 2
    assert max(map(len, BPETokenizer.train([words * 9], 2000).token_bytes)) <= LONGEST


def vocabulary_and_merges(bpe: BPETokenizer, folder: Path, names: tuple[str, str]) -> Path:
    """A folder in the form that GPT-2 was published in."""
    parts = json.loads(bpe.arguments["tokenizer"])["model"]
    folder.mkdir()
    (folder / names[0]).write_text(json.dumps(parts["vocab"] | {"<|endoftext|>": bpe.end_of_text}))
    merges = "".join(f"{one} {other}\n" for one, other in parts["merges"])
    (folder / names[1]).write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return folder


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_vocabulary_and_merges_are_enough(bpe: BPETokenizer, tmp_path: Path, names: tuple[str, str]) -> None:
    folder = vocabulary_and_merges(bpe, tmp_path / "old", names)
    for tokenizer in (BPETokenizer.from_pretrained(folder), read_tokenizer(folder)):
        text = language_reference()[0] + "<|endoftext|>" + ODD
        assert tokenizer.encode(text) == bpe.encode(text)
        assert tokenizer.stop_tokens == bpe.stop_tokens
        assert tokenizer.vocab_size == 600
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match=r"holds no merges\.txt or vocab\.bpe"):
        read_tokenizer(folder)


def test_transformers_reads_what_we_write_and_we_what_it_writes(bpe: BPETokenizer, tmp_path: Path) -> None:
    text = language_reference()[0] + "<|endoftext|>" + ODD
    PreTrainedTokenizerFast(tokenizer_object=bpe.hugging_face()).save_pretrained(tmp_path / "theirs")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert theirs(text)["input_ids"] == bpe.encode(text)
    assert theirs.decode(bpe.encode(text)) == text
    for name in (tmp_path / "theirs", tmp_path / "theirs/tokenizer.json"):
        tokenizer = read_tokenizer(name)
        assert isinstance(tokenizer, BPETokenizer)
        assert tokenizer.encode(text) == BPETokenizer.from_pretrained(name).encode(text) == bpe.encode(text)


def test_the_library_is_a_copy(bpe: BPETokenizer) -> None:
    bpe.hugging_face().add_tokens(["Hello"])
    assert bpe.vocab_size == 600
    assert len(bpe.encode("Hello")) > 1


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json or vocab\.json or encoder\.json"):
        read_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    for read in (read_tokenizer, BPETokenizer.from_pretrained):
        with pytest.raises(UserError, match=r"not a tokenizer\.json"):
            read(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(tmp_path)


def spoil(change: Callable[[Backend], Any]) -> Callable[[Backend], Backend]:
    """A backend with one thing changed."""

    def apply(backend: Backend) -> Backend:
        change(backend)
        return backend

    return apply


def without_a_byte(backend: Backend) -> Backend:
    parts = json.loads(backend.to_str())
    parts["model"]["vocab"]["unused"] = parts["model"]["vocab"].pop("Ċ")
    parts["model"]["merges"] = [pair for pair in parts["model"]["merges"] if "Ċ" not in "".join(pair)]
    return Backend.from_str(json.dumps(parts))


@pytest.mark.parametrize(
    "change",
    [
        spoil(lambda it: setattr(it, "normalizer", normalizers.NFC())),
        spoil(lambda it: setattr(it, "normalizer", normalizers.Lowercase())),
        spoil(lambda it: setattr(it, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))),
        spoil(lambda it: setattr(it, "pre_tokenizer", pre_tokenizers.Whitespace())),
        spoil(lambda it: setattr(it.model, "dropout", 0.1)),
        spoil(lambda it: it.add_special_tokens([AddedToken("<mask>", lstrip=True)])),
        without_a_byte,
        lambda _: Backend(models.Unigram([("a", 0.0)])),
    ],
)
def test_what_loses_text_is_refused(bpe: BPETokenizer, change: Callable[[Backend], Backend]) -> None:
    with pytest.raises(UserError, match="not byte-level BPE, or doesn't reproduce every text"):
        BPETokenizer(change(bpe.hugging_face()).to_str())


def test_other_pieces_are_fine_and_limits_are_lifted(bpe: BPETokenizer) -> None:
    backend = bpe.hugging_face()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|."), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    tokenizer = BPETokenizer(backend.to_str())
    assert tokenizer.decode(tokenizer.encode("no limit, 12345 tokens " + ODD)) == "no limit, 12345 tokens " + ODD


# The same as everybody else's


def test_known_ids(gpt2: BPETokenizer) -> None:
    text = "Hello!! I'm Andrej Karpathy. It's 2022. w00t :D 🤗"
    ids = "15496 3228 314 1101 10948 73 509 5117 10036 13 632 338 33160 13 266 405 83 1058 35 12520 97 245"
    assert gpt2.encode(text) == [int(word) for word in ids.split()]
    assert gpt2.encode("${") == [38892], "a checkpoint must take it for no interpolation"
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)


@pytest.mark.parametrize("vocabulary", ["bpe", "gpt2"])
def test_ids_are_those_of_tiktoken(request: pytest.FixtureRequest, vocabulary: str) -> None:
    from tiktoken import Encoding
    from tiktoken_ext.openai_public import r50k_pat_str

    ours: BPETokenizer = request.getfixturevalue(vocabulary)
    assert ours.end_of_text is not None
    known = {text: token for token, text in enumerate(ours.token_bytes[:-1]) if text}
    theirs = Encoding(
        vocabulary, pat_str=r50k_pat_str, mergeable_ranks=known, special_tokens={"<|endoftext|>": ours.end_of_text}
    )
    texts = [FOX, *language_reference(), ODD, " \n \n  x\t\t y" + ODD[::-1] * 3]
    for text, tokens in zip(texts, ours.encode_batch(texts), strict=True):
        assert tokens.tolist() == theirs.encode_ordinary(text)
    assert ours.encode(texts[1]) == theirs.encode_ordinary(texts[1])
    assert ours.encode("a<|endoftext|>b") == theirs.encode("a<|endoftext|>b", allowed_special="all")
    assert all(ours.token_bytes[token] == theirs.decode_single_token_bytes(token) for token in known.values())
