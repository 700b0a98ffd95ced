"""Tokenizers: text to tokens and back without loss, the same as transformers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mingpt_lightning import CharTokenizer, Tokenizer, UserError
from mingpt_lightning.bpe import BPETokenizer, FastTokenizer, read_tokenizer
from mingpt_lightning.errors import CheckpointError
from projects.adder.datamodule import AdderTokenizer
from tests.common import ODD

# Characters


def test_a_prompt_with_unknown_characters_follows_the_policy() -> None:
    with pytest.raises(UserError, match=r"never seen: '\\n' \(U\+000A\), '🤗' \(U\+1F917\) \(prompt\)"):
        CharTokenizer("abc").encode("a🤗b\n")
    assert CharTokenizer("abc", on_unknown="skip").encode("a🤗b\n") == [0, 1]
    assert CharTokenizer("abc", on_unknown="c").encode("a🤗b\n") == [0, 2, 1, 2]


@pytest.mark.parametrize("on_unknown", ["", "x", "ab", "ignore"])
def test_an_unknown_policy_is_refused(on_unknown: str) -> None:
    with pytest.raises(UserError, match=r"on_unknown=.*error, skip, or a replacement character"):
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
    assert isinstance(read_tokenizer(tmp_path), FastTokenizer)
    with pytest.raises(UserError, match="not byte-level BPE"):
        BPETokenizer.from_pretrained(tmp_path)


def test_half_a_character_cannot_be_exported() -> None:
    with pytest.raises(UserError, match=r"character 1 is a lone surrogate: '\\ud800' \(U\+D800\)"):
        CharTokenizer("a\ud800").hugging_face()


@pytest.mark.parametrize(
    "tokenizer", [CharTokenizer("abc \n"), BPETokenizer.train(["a cab, a cab"], 260)], ids=["characters", "bytes"]
)
def test_a_saved_tokenizer_is_read_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "folder")
    again = read_tokenizer(tmp_path / "folder")
    assert again.state() == tokenizer.state()
    assert again.encode("a cab") == tokenizer.encode("a cab")


def test_the_notation_of_a_task_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="its own notation"):
        AdderTokenizer(ndigit=2).save(tmp_path)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(Tokenizer, "registry", dict(Tokenizer.registry))


def lower_tokenizer(name: str | None = None) -> type[CharTokenizer]:
    """A project's own tokenizer, one step further from Tokenizer than ours."""
    members = {"encode": lambda self, text: CharTokenizer.encode(self, text.lower()), "__module__": __name__}
    return type("LowerTokenizer", (CharTokenizer,), members | ({"name": name} if name else {}))


def test_a_subclass_of_a_tokenizer_comes_back_as_itself(registry: None) -> None:
    cls = lower_tokenizer("lower")
    tokenizer = Tokenizer.from_state(cls(characters="abc").state())
    assert type(tokenizer) is cls
    assert tokenizer.encode("CAB") == [2, 0, 1]
    again = lower_tokenizer("lower")  # a notebook may define its class twice
    assert type(Tokenizer.from_state(again("abc").state())) is again


def test_a_tokenizer_without_a_name_of_its_own_is_refused(registry: None) -> None:
    with pytest.raises(UserError, match="LowerTokenizer has no `name` of its own"):
        lower_tokenizer()


def test_two_tokenizers_of_one_name_are_refused(registry: None) -> None:
    with pytest.raises(UserError, match="two tokenizers have the name 'characters'"):
        lower_tokenizer("characters")


def test_a_tokenizer_tells_its_unit() -> None:
    tokenizer = CharTokenizer("abc")
    assert (tokenizer.unit, tokenizer.byte_lengths) == ("character", None)
