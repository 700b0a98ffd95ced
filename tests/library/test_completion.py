"""Text from a GPT: whole or in pieces, with stop strings and end-of-text, whatever the batch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning import GPT, BPETokenizer, CharTokenizer, UserError
from mingpt_lightning.completion import complete, stream
from projects.adder.datamodule import AdderTokenizer
from tests.common import MakeGPT

CHARACTERS = CharTokenizer("\n abcdefgh")
TEXT = "Grüße! 你好 🤗 naïve café, the the the end.\n" * 20
BPE = BPETokenizer.train([TEXT], 300)
PROMPTS = ["a", "", "abc", "a", "h\nh", "abcdefgh" * 5]


def chars_gpt(make_gpt: MakeGPT, **sizes: Any) -> GPT:
    return make_gpt(CHARACTERS.vocab_size, **{"block_size": 16, "scale": 1.0} | sizes)


def bytes_gpt(make_gpt: MakeGPT, seed: int = 0) -> GPT:
    """A GPT that knows nothing, so that it writes half characters, invalid bytes and end-of-text."""
    return make_gpt(BPE.vocab_size, block_size=16, scale=1.0, seed=seed)


def test_a_completion_is_the_text_of_the_generated_tokens(make_gpt: MakeGPT) -> None:
    gpt = chars_gpt(make_gpt)
    (sample,) = complete(gpt, CHARACTERS, ["abc"], 10, seed=1)
    tokens = gpt.generate(torch.tensor([CHARACTERS.encode("abc")]), 10, seed=1)[0].tolist()
    assert sample == ("abc", CHARACTERS.decode(tokens)[3:])


@pytest.mark.parametrize("options", [{}, {"stop": ["ab", "c"]}, {"temperature": 0}, {"use_cache": False}], ids=str)
def test_a_text_is_what_it_would_be_alone(make_gpt: MakeGPT, options: dict[str, Any]) -> None:
    gpt = chars_gpt(make_gpt)
    together = complete(gpt, CHARACTERS, PROMPTS, 30, seed=4, **options)
    for i in (0, 1, 2, 4, 5):
        assert complete(gpt, CHARACTERS, [PROMPTS[i]], 30, seed=4, **options) == [together[i]]
    if not options:
        assert together[0].text != together[3].text  # two samples of one prompt


@given(seed=st.integers(0, 10_000), stop=st.sets(st.text("abc\n ", min_size=1, max_size=3), max_size=3))
def test_pieces_are_the_whole_and_end_with_the_stop_string(make_gpt: MakeGPT, seed: int, stop: set[str]) -> None:
    gpt, strings = chars_gpt(make_gpt), sorted(stop)
    free = "".join(stream(gpt, CHARACTERS, "ab", 40, seed=seed))
    pieces = list(stream(gpt, CHARACTERS, "ab", 40, seed=seed, stop=strings))
    text = complete(gpt, CHARACTERS, ["ab"], 40, seed=seed, stop=strings)[0].text
    assert "".join(pieces) == text
    ends = [free.index(string) + len(string) for string in stop if string in free]
    assert text == free[: min(ends, default=40)]


@given(seed=st.integers(0, 10_000))
def test_no_piece_has_half_a_character(make_gpt: MakeGPT, seed: int) -> None:
    gpt = bytes_gpt(make_gpt, seed % 7)
    pieces = list(stream(gpt, BPE, "Grü", 60, seed=seed))
    assert "".join(pieces) == complete(gpt, BPE, ["Grü"], 60, seed=seed)[0].text
    tokens = gpt.generate([torch.tensor(BPE.encode("Grü"))], 60, seed=seed, stop_tokens=BPE.stop_tokens)[0].tolist()
    assert "".join(["Grü", *pieces]) == BPE.decode([token for token in tokens if token != BPE.end_of_text])


def test_a_stop_string_may_span_tokens(make_gpt: MakeGPT) -> None:
    gpt = bytes_gpt(make_gpt)
    (free,) = complete(gpt, BPE, ["the"], 60, seed=0, stop_tokens=())
    for start in range(0, len(free.text) - 5, 3):
        stop = free.text[start : start + 5]
        (sample,) = complete(gpt, BPE, ["the"], 60, seed=0, stop_tokens=(), stop=[stop])
        assert sample.text == free.text[: free.text.index(stop) + 5]


def test_end_of_text_ends_a_row_and_is_not_shown(make_gpt: MakeGPT) -> None:
    assert BPE.end_of_text is not None
    gpt = bytes_gpt(make_gpt)
    with torch.no_grad():
        gpt.head.weight[BPE.end_of_text] *= 40
    prompts = ["the", "Grüße", ""]
    ended = complete(gpt, BPE, prompts, 100, seed=0)
    endless = complete(gpt, BPE, prompts, 100, seed=0, stop_tokens=())
    assert any("<|endoftext|>" in sample.text for sample in endless)
    for short, long in zip(ended, endless, strict=True):
        assert short.text == long.text.split("<|endoftext|>")[0]


def test_an_empty_prompt_starts_from_a_token_that_is_not_shown(make_gpt: MakeGPT) -> None:
    gpt = chars_gpt(make_gpt)
    (empty,), (newline,) = (complete(gpt, CHARACTERS, [prompt], 9, seed=0, temperature=0) for prompt in ("", "\n"))
    assert empty == ("", newline.text)
    gpt = bytes_gpt(make_gpt)
    (empty,), (end,) = (complete(gpt, BPE, [p], 9, temperature=0, stop_tokens=()) for p in ("", "<|endoftext|>"))
    assert empty == ("", end.text)


def test_an_empty_prompt_may_be_impossible(make_gpt: MakeGPT) -> None:
    tokenizer = CharTokenizer("\n abcdefgh")
    tokenizer.start_token = None
    with pytest.raises(UserError, match="prompt is empty"):
        complete(chars_gpt(make_gpt), tokenizer, [""], 3)


def test_answers_are_read_as_people_write_them(make_gpt: MakeGPT) -> None:
    tokenizer = AdderTokenizer(ndigit=2)
    gpt = make_gpt(10, block_size=6)
    (sample,) = complete(gpt, tokenizer, ["6+39"], 3, temperature=0)
    assert sample.prompt == "6+39="
    assert sample.text.isdigit()
    assert list(stream(gpt, tokenizer, "6+39", 3, temperature=0)) == [sample.text]


def test_pieces_come_while_the_text_is_made(make_gpt: MakeGPT) -> None:
    gpt, computed = chars_gpt(make_gpt), []
    gpt.head.register_forward_hook(lambda *_: computed.append(None))
    pieces = stream(gpt, CHARACTERS, "a", 40, seed=0)
    next(pieces)
    assert len(computed) == 1
    next(pieces)
    assert len(computed) == 2


def test_a_reader_who_leaves_finds_the_model_as_it_was(make_gpt: MakeGPT) -> None:
    gpt = chars_gpt(make_gpt, dropout=0.5).train()
    pieces = stream(gpt, CHARACTERS, "a", 40, seed=0)
    next(pieces)
    assert gpt.training
    assert torch.is_grad_enabled()
    pieces.close()  # type: ignore[attr-defined]


def test_a_stop_string_has_a_character(make_gpt: MakeGPT) -> None:
    with pytest.raises(UserError, match="stop string is empty"):
        complete(chars_gpt(make_gpt), CHARACTERS, ["a"], 3, stop=["a", ""])
    with pytest.raises(UserError, match="stop string is empty"):
        next(stream(chars_gpt(make_gpt), CHARACTERS, "a", 3, stop=[""]))
