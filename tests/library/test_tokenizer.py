"""Tokenizers: text to tokens and back without loss, the same as everybody else's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mingpt_lightning import CharTokenizer, Tokenizer, UserError
from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.text import language_reference
from mingpt_lightning.tokenizer import BPETokenizer, read_tokenizer
from projects.adder.datamodule import AdderTokenizer
from tests.common import ROOT

GPT2 = ROOT.parent / "shared/data/gpt2"
SHAKESPEARE = GPT2.parent / "tinyshakespeare.txt"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason="needs GPT-2's files")

ODD = "\x00\t\r\n\x0b\x85\xa0\u2028\u3000 'éé\u0301ßǅñ"
ODD += "日本語한국어🤗👨‍👩‍👧‍👦🇫🇷\ufeff\ufffd\u200d\U0010ffffﬁ\uff21①½_.!?<|>"
odd_text = st.text(st.one_of(st.sampled_from("ab '\n" + ODD), st.characters(exclude_categories=["Cs"])), max_size=40)


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    """A small vocabulary."""
    return BPETokenizer.train(language_reference(), 600)


@pytest.fixture(scope="session")
def gpt2() -> BPETokenizer:
    """GPT-2's own."""
    return BPETokenizer.from_pretrained(GPT2)


# Characters


def test_a_prompt_with_unknown_characters_follows_the_policy() -> None:
    with pytest.raises(UserError, match=r"never seen: '\\n' \(U\+000A\), '🤗' \(U\+1F917\) \(prompt\)"):
        CharTokenizer("abc").encode("a🤗b\n")
    assert CharTokenizer("abc", on_unknown="skip").encode("a🤗b\n") == [0, 1]
    assert CharTokenizer("abc", on_unknown="c").encode("a🤗b\n") == [0, 2, 1, 2]


@pytest.mark.parametrize("on_unknown", ["", "x", "ab", "ignore"])
def test_an_unknown_policy_is_refused(on_unknown: str) -> None:
    with pytest.raises(UserError, match=r"on_unknown=.*error, skip, or one character"):
        CharTokenizer("abc", on_unknown=on_unknown)


@given(text=st.text(max_size=50))
def test_the_tokenizer_inverts_itself(text: str) -> None:
    tokenizer = CharTokenizer(text + "a")
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)


def test_the_tokenizer_survives_a_checkpoint() -> None:
    again = Tokenizer.from_state(CharTokenizer("cab", on_unknown="skip").state())
    assert isinstance(again, CharTokenizer)
    assert again.encode("cxab") == [2, 0, 1]
    with pytest.raises(CheckpointError, match="'nonsense' is not known"):
        Tokenizer.from_state({"name": "nonsense", "arguments": {}})


def test_a_large_vocabulary_takes_wider_tokens() -> None:
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    tokens = CharTokenizer(characters).encode_array(characters)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == list(range(300))


def test_characters_stream_one_by_one() -> None:
    tokenizer = CharTokenizer("abc")
    assert list(tokenizer.stream(iter([2, 0, 1]))) == ["c", "a", "b"]
    assert (tokenizer.start_token, tokenizer.stop_tokens) == (0, ())
    assert CharTokenizer("abc\n").start_token == 0  # the line break


def test_a_notation_has_no_start_and_no_library() -> None:
    tokenizer = AdderTokenizer(2)
    assert (tokenizer.start_token, tokenizer.stop_tokens, tokenizer.hugging_face()) == (None, (), None)
    tokens = tokenizer.encode("85+50")
    assert list(tokenizer.stream(tokens)) == [tokenizer.decode(tokens)]


@pytest.fixture(scope="module", params=["error", "skip", "é"])
def chars(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CharTokenizer, Path, Any]:
    """Characters, the folder that transformers wrote of them, and what it reads from there."""
    tokenizer = CharTokenizer(ODD + "abc -]^\\", request.param)
    folder = tmp_path_factory.mktemp("characters")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.hugging_face()).save_pretrained(folder)
    return tokenizer, folder, AutoTokenizer.from_pretrained(folder)


@given(text=st.text(st.sampled_from(ODD + "abc -]^\\"), max_size=40))
def test_transformers_reads_characters_as_we_do(chars: tuple[CharTokenizer, Path, Any], text: str) -> None:
    tokenizer, _, theirs = chars
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text


def test_transformers_treats_unknown_characters_as_we_do(chars: tuple[CharTokenizer, Path, Any]) -> None:
    tokenizer, _, theirs = chars
    if tokenizer.on_unknown == "error":
        with pytest.raises(Exception, match="UNK"):
            theirs("axb")
    else:
        assert theirs("axb. n't")["input_ids"] == tokenizer.encode("axb. n't")


def test_characters_come_back_from_a_folder(chars: tuple[CharTokenizer, Path, Any]) -> None:
    tokenizer, folder, _ = chars
    for name in (folder, folder / "tokenizer.json"):
        assert read_tokenizer(name).state() == tokenizer.state()


def test_words_are_no_characters(tmp_path: Path) -> None:
    Backend(models.WordLevel({"ab": 0, "c": 1}, unk_token="c")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"the words of .* are not characters"):
        read_tokenizer(tmp_path)
    with pytest.raises(UserError, match="not byte-level BPE"):
        BPETokenizer.from_pretrained(tmp_path)


def test_half_a_character_cannot_be_exported() -> None:
    with pytest.raises(UserError, match=r"character 1 is half of one: '\\ud800' \(U\+D800\)"):
        CharTokenizer("a\ud800").hugging_face()


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
    message = r"^character 2 is half of one: '\\ud83e' \(U\+D83E\).*Remove it\.$"
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
    with pytest.raises(UserError, match="character 0 is half of one"):
        BPETokenizer.train(["fine", "\ud800"], 300)


# Files


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
    with pytest.raises(UserError, match="not byte-level BPE, or doesn't give back each text"):
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


@needs_gpt2
def test_known_ids(gpt2: BPETokenizer) -> None:
    text = "Hello!! I'm Andrej Karpathy. It's 2022. w00t :D 🤗"
    ids = "15496 3228 314 1101 10948 73 509 5117 10036 13 632 338 33160 13 266 405 83 1058 35 12520 97 245"
    assert gpt2.encode(text) == [int(word) for word in ids.split()]
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert any("${" in text for text in json.loads(gpt2.arguments["tokenizer"])["model"]["vocab"])


@needs_gpt2
def test_ids_are_those_of_tiktoken(gpt2: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name, cached in [
        ("encoder.json", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"),
        ("vocab.bpe", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"),
    ]:
        (tmp_path / cached).write_bytes((GPT2 / name).read_bytes())
    theirs = tiktoken.get_encoding("gpt2")
    texts = [SHAKESPEARE.read_text(encoding="utf-8"), *language_reference(), ODD, " \n \n  x\t\t y" + ODD[::-1] * 3]
    for text, tokens in zip(texts, gpt2.encode_batch(texts), strict=True):
        assert tokens.tolist() == theirs.encode_ordinary(text)
    assert gpt2.encode(texts[0]) == theirs.encode_ordinary(texts[0])
    assert gpt2.encode("a<|endoftext|>b") == theirs.encode("a<|endoftext|>b", allowed_special="all")
    assert all(gpt2.token_bytes[token] == theirs.decode_single_token_bytes(token) for token in range(0, 50257, 7))


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc \n"), BPETokenizer.train(["a cab, a cab"], 260)], ids=str)
def test_a_saved_tokenizer_is_read_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "folder")
    again = read_tokenizer(tmp_path / "folder")
    assert again.state() == tokenizer.state()
    assert again.encode("a cab") == tokenizer.encode("a cab")


def test_the_notation_of_a_task_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="notation of its own"):
        AdderTokenizer(ndigit=2).save(tmp_path)
