"""Generation: what is chosen, with and without the cache, alone and in a batch, and past the end of the block."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mingpt_lightning import GPT, UserError
from mingpt_lightning.generation import Sampling, sample
from mingpt_lightning.weights import to_hf_name, transpose_conv1d
from tests.common import MakeGPT

V, T = 11, 8  # the sizes of `make_gpt`
PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def greedy(gpt: GPT, tokens: Tensor, steps: int) -> Tensor:
    """The likeliest token, again and again. When the window of T tokens is full, its older half leaves."""
    start = max(0, tokens.shape[1] - T)
    for _ in range(steps):
        tokens = torch.cat([tokens, gpt(tokens[:, start:])[:, -1:].argmax(dim=-1)], dim=1)
        if tokens.shape[1] - start > T:
            start = tokens.shape[1] - T // 2
    return tokens


@pytest.mark.parametrize("steps", [1, 5, 3 * T])
def test_temperature_0_takes_the_likeliest_token(make_gpt: MakeGPT, steps: int) -> None:
    gpt = make_gpt()
    generated = gpt.generate(PROMPTS, steps, temperature=0)
    assert torch.equal(generated, greedy(gpt, PROMPTS, steps))
    assert generated.shape == (2, 3 + steps)
    assert generated.dtype == torch.int64


@pytest.mark.parametrize("length", [1, T - 1, T, T + 1, 3 * T])
def test_a_prompt_may_have_any_length(make_gpt: MakeGPT, length: int) -> None:
    gpt, prompt = make_gpt(), torch.arange(2 * length).reshape(2, length) % V
    generated = gpt.generate(prompt, T, temperature=0)
    assert torch.equal(generated, greedy(gpt, prompt, T))
    assert torch.equal(generated[:, :length], prompt)


def test_past_the_block_only_the_last_tokens_matter(make_gpt: MakeGPT) -> None:
    gpt, prompt = make_gpt(), torch.arange(2 * T)[None] % V
    cropped = gpt.generate(prompt[:, -T:], 5, temperature=0)
    assert torch.equal(gpt.generate(prompt, 5, temperature=0)[:, -5:], cropped[:, -5:])


def test_no_new_tokens_are_no_tokens(make_gpt: MakeGPT) -> None:
    assert torch.equal(make_gpt().generate(PROMPTS, 0), PROMPTS)


def test_rows_do_not_see_one_another(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    together = gpt.generate(PROMPTS, 6, temperature=0)
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert torch.equal(gpt.generate(prompt[None], 6, temperature=0)[0], row)


@given(seed=st.integers(0, 2**32 - 1), top_k=st.none() | st.integers(1, 20))
def test_a_seed_fixes_the_sample(make_gpt: MakeGPT, seed: int, top_k: int | None) -> None:
    gpt = make_gpt()
    state = torch.get_rng_state()
    first = gpt.generate(PROMPTS, 6, top_k=top_k, seed=seed)
    assert torch.equal(gpt.generate(PROMPTS, 6, top_k=top_k, seed=seed), first)
    assert torch.equal(torch.get_rng_state(), state)  # the generator of everything else is left alone


def test_seeds_give_different_samples(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(scale=1.0)
    assert len({tuple(gpt.generate(PROMPTS, 10, seed=seed).flatten().tolist()) for seed in range(10)}) == 10


def test_without_a_seed_torchs_own_generator_decides(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(scale=1.0)
    torch.manual_seed(0)
    first, second = gpt.generate(PROMPTS, 10), gpt.generate(PROMPTS, 10)
    torch.manual_seed(0)
    assert torch.equal(gpt.generate(PROMPTS, 10), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"top_k": 1}, *({"temperature": t} for t in (1e-4, 1e-300, 5e-324))])
def test_the_narrowest_choice_is_greedy(make_gpt: MakeGPT, options: dict[str, Any]) -> None:
    gpt = make_gpt()
    assert torch.equal(gpt.generate(PROMPTS, 2 * T, seed=0, **options), greedy(gpt, PROMPTS, 2 * T))


N = 20_000


def frequencies(logits: Tensor, seen: Tensor | None = None, **sampling: Any) -> Tensor:
    """How often each token comes in N draws."""
    uniform = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = None if seen is None else seen.expand(N, -1)
    drawn = sample(logits.expand(N, -1), Sampling(**sampling), uniform, rows)
    assert drawn.shape == (N,)
    return torch.bincount(drawn, minlength=logits.shape[-1]).double()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic: about the number of tokens when counts are drawn from these probabilities."""
    expected = N * probabilities.double()
    return ((counts - expected) ** 2 / expected).sum().item()


LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 1.5, 0.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_distribution(temperature: float) -> None:
    counts = frequencies(LOGITS, temperature=temperature)
    assert chi_square(counts, torch.softmax(LOGITS / temperature, dim=0)) < 20.5  # 5 degrees of freedom: p = 0.001
    assert chi_square(counts, torch.softmax(LOGITS / (temperature * 1.2), dim=0)) > 50  # a fifth more shows


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.5},
    {},
    {"temperature": 0.7},
    {"top_k": 4},
    {"top_p": 0.8},
    {"top_k": 6, "top_p": 0.9, "temperature": 1.3, "repetition_penalty": 0.7},
    {"stop_tokens": (5, 7)},
]
RAGGED = [torch.arange(length) * 3 % V for length in (3, 1, T, T - 1, 2 * T + 3, 3)]  # the first and last are equal


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("block_size", [1, 2, 5, T, 100])
def test_the_cache_changes_nothing(make_gpt: MakeGPT, options: dict[str, Any], block_size: int) -> None:
    gpt = make_gpt(block_size=block_size, scale=3.0)
    with_cache = gpt.generate(RAGGED, 3 * T, seed=1, **options)
    without = gpt.generate(RAGGED, 3 * T, seed=1, use_cache=False, **options)
    assert all(map(torch.equal, with_cache, without))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_row_is_what_it_would_be_alone(make_gpt: MakeGPT, options: dict[str, Any]) -> None:
    gpt = make_gpt(scale=3.0)
    together = gpt.generate(RAGGED, 3 * T, seed=1, **options)
    for prompt, row in zip(RAGGED[:-1], together, strict=False):
        assert torch.equal(gpt.generate([prompt], 3 * T, seed=1, **options)[0], row)
        assert torch.equal(row[: len(prompt)], prompt)
    backwards = gpt.generate(RAGGED[4::-1], 3 * T, seed=1, **options)
    assert all(map(torch.equal, backwards[::-1], together))


def test_samples_of_one_prompt_differ_and_do_not_depend_on_their_number(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(scale=1.0)
    five = gpt.generate(PROMPTS[:1].expand(5, -1), 10, seed=3)
    assert len({tuple(row) for row in five.tolist()}) == 5
    assert torch.equal(gpt.generate(PROMPTS[:1].expand(2, -1), 10, seed=3), five[:2])


def test_fewer_new_tokens_are_the_beginning_of_more(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(scale=1.0)
    assert torch.equal(gpt.generate(PROMPTS, 5, seed=0), gpt.generate(PROMPTS, 30, seed=0)[:, : PROMPTS.shape[1] + 5])


class Counting:
    """Counts the tokens that a GPT computes."""

    def __init__(self, gpt: GPT):
        self.tokens: list[int] = []
        gpt.blocks[0].register_forward_hook(lambda module, inputs, output: self.tokens.append(output[..., 0].numel()))


def test_a_prompt_is_read_once_and_each_token_once(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(block_size=100)
    counting = Counting(gpt)
    gpt.generate(torch.ones(5, 40, dtype=torch.long), 20)  # five samples of one prompt
    assert counting.tokens == [40] + 19 * [5]


def test_past_the_block_the_work_per_token_has_a_bound(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(block_size=16)
    counting = Counting(gpt)
    gpt.generate(PROMPTS[:1], 2000, temperature=0)
    first, second = sum(counting.tokens[:1000]), sum(counting.tokens[1000:])
    assert first == pytest.approx(second, rel=0.02)
    assert second / 1000 < 2


def test_a_row_ends_with_its_stop_token(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(scale=1.0)
    free = gpt.generate(RAGGED, 50, seed=0)
    stopped = gpt.generate(RAGGED, 50, seed=0, stop_tokens=[3, 8])
    for prompt, row, other in zip(RAGGED, free, stopped, strict=True):
        ends = [i for i, token in enumerate(row.tolist()) if token in (3, 8) and i >= len(prompt)]
        assert torch.equal(other, row[: ends[0] + 1] if ends else row)
    assert len({len(row) for row in stopped}) > 3
    same_length = gpt.generate(PROMPTS, 50, seed=0, stop_tokens=[3, 8])
    for row in same_length.tolist():
        end = next(i for i, token in enumerate(row) if token in (3, 8) and i >= 3)
        assert set(row[end:]) == {row[end]}


def test_repeated_tokens_are_less_likely(make_gpt: MakeGPT) -> None:
    logits = torch.tensor([2.0, -1.0, 1.0, 0.0])
    seen = torch.tensor([True, True, False, False])
    counts = frequencies(logits, seen=seen, repetition_penalty=2.0)
    assert chi_square(counts, torch.softmax(torch.tensor([1.0, -2.0, 1.0, 0.0]), dim=0)) < 16.3
    gpt = make_gpt(block_size=64, scale=1.0)
    repetitive = gpt.generate(PROMPTS[:1], 40, temperature=0)
    varied = gpt.generate(PROMPTS[:1], 40, temperature=0, repetition_penalty=2.0)
    assert len(set(varied[0].tolist())) > len(set(repetitive[0].tolist()))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [0]), (0.41, [0]), (0.43, [0, 4]), (0.75, [0, 4, 2]), (1.0, range(6))]
)
def test_top_p_keeps_the_likeliest_until_they_reach_it(top_p: float, kept: list[int]) -> None:
    # The probabilities in falling order: 0.42, 0.25, 0.15, 0.09, ... of tokens 0, 4, 2, 1, ...
    counts = frequencies(LOGITS, top_p=top_p)
    assert set(counts.nonzero()[:, 0].tolist()) == set(kept)
    assert chi_square(counts[list(kept)], torch.softmax(LOGITS[list(kept)], dim=0)) < 20.5


def test_greedy_is_what_transformers_generates(make_gpt: MakeGPT) -> None:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
                        initializer_range=0.5)  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    gpt = make_gpt(block_size=64)
    for name, weight in gpt.named_parameters():
        other = theirs.transformer.get_parameter(to_hf_name(name))
        with torch.no_grad():
            weight.copy_(transpose_conv1d(name, other))
    for penalty in (1.0, 1.3):
        options = GenerationConfig(max_new_tokens=40, do_sample=False, repetition_penalty=penalty, pad_token_id=0)
        expected = theirs.generate(PROMPTS, attention_mask=torch.ones_like(PROMPTS), generation_config=options,
                                   eos_token_id=None)  # fmt: skip
        assert torch.equal(gpt.generate(PROMPTS, 40, temperature=0, repetition_penalty=penalty), expected)


@pytest.mark.parametrize("top_k", [2, 4])
def test_top_k_keeps_the_likeliest_in_their_proportions(top_k: int) -> None:
    kept = LOGITS.topk(top_k).indices
    counts = frequencies(LOGITS, top_k=top_k)
    assert counts[kept].sum() == N
    assert chi_square(counts[kept], torch.softmax(LOGITS[kept], dim=0)) < 16.3  # 3 degrees of freedom: p = 0.001


@pytest.mark.parametrize("top_k", [0, 100])
def test_top_k_above_the_vocabulary_or_zero_means_all(top_k: int) -> None:
    assert torch.equal(frequencies(LOGITS, top_k=top_k), frequencies(LOGITS))


def test_huge_logits_and_temperatures_are_no_trouble() -> None:
    assert frequencies(LOGITS * 1e30)[0] == N
    counts = frequencies(LOGITS, temperature=1e300)
    assert chi_square(counts, torch.full_like(LOGITS, 1 / 6)) < 20.5


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_dropout_is_off(make_gpt: MakeGPT, training: bool) -> None:
    gpt = make_gpt(dropout=0.5).train(training)
    generated = gpt.generate(PROMPTS, 6, temperature=0)
    assert gpt.training == gpt.blocks[0].attn.training == training
    assert torch.equal(generated, greedy(make_gpt(), PROMPTS, 6))


def test_the_mode_is_restored_after_an_error(make_gpt: MakeGPT) -> None:
    gpt = make_gpt().train()
    with pytest.raises(UserError, match=f"token {V} is not in the vocabulary of {V}"):
        gpt.generate(torch.tensor([[V]]), 1)
    with torch.no_grad():
        gpt.norm.bias.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        gpt.generate(PROMPTS, 1)
    assert gpt.training


def test_each_module_gets_its_own_mode_back(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(dropout=0.5).train()
    gpt.blocks[0].eval()
    gpt.generate(PROMPTS, 3)
    assert gpt.training
    assert gpt.blocks[1].attn.training
    assert not gpt.blocks[0].attn.training


def test_no_gradient_is_kept(make_gpt: MakeGPT) -> None:
    gpt, kept = make_gpt(), []
    gpt.head.register_forward_hook(lambda module, inputs, logits: kept.append(logits.requires_grad))
    gpt.generate(PROMPTS, 2)
    assert kept == [False, False]
    assert gpt(PROMPTS).requires_grad


def test_an_empty_prompt_is_refused(make_gpt: MakeGPT) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        make_gpt().generate(torch.empty(1, 0, dtype=torch.long), 3)


BAD = [
    *(("temperature", value) for value in (-0.1, math.nan, math.inf, -math.inf, "warm", None, True)),
    *(("top_k", value) for value in (-1, 2.5, math.nan, True, False)),
    *(("top_p", value) for value in (0, -0.5, 1.1, math.nan, "half")),
    *(("repetition_penalty", value) for value in (0, -1, math.nan, math.inf)),
    *(("seed", value) for value in (-1, 1.5)),
    *(("max_new_tokens", value) for value in (-1, 2.5, True)),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_option_is_refused(make_gpt: MakeGPT, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name}={value} "):
        make_gpt().generate(PROMPTS, **{"max_new_tokens": 3, name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_no_numbers_are_refused(make_gpt: MakeGPT, value: float, temperature: float) -> None:
    gpt = make_gpt().train()
    with torch.no_grad():
        gpt.norm.bias.fill_(value)
    with pytest.raises(UserError, match="not finite"):
        gpt.generate(PROMPTS, 3, temperature=temperature)
    assert gpt.training
