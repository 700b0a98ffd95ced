"""Generation: greedy, sampled, and past the end of the block."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mingpt_lightning import GPT, UserError
from mingpt_lightning.generation import sample

MakeGPT = Callable[..., GPT]

V, T = 11, 8  # the sizes of `make_gpt`
PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def greedy(gpt: GPT, tokens: Tensor, steps: int) -> Tensor:
    """The likeliest token, again and again, of a window of the last T."""
    for _ in range(steps):
        tokens = torch.cat([tokens, gpt(tokens[:, -T:])[:, -1:].argmax(dim=-1)], dim=1)
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


def frequencies(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """How often each token comes in N draws."""
    drawn = sample(logits.expand(N, -1), temperature, top_k, torch.Generator().manual_seed(0))
    assert drawn.shape == (N, 1)
    return torch.bincount(drawn[:, 0], minlength=logits.shape[-1]).double()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic: about the number of tokens when counts are drawn from these probabilities."""
    expected = N * probabilities.double()
    return ((counts - expected) ** 2 / expected).sum().item()


LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 1.5, 0.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_distribution(temperature: float) -> None:
    counts = frequencies(LOGITS, temperature)
    assert chi_square(counts, torch.softmax(LOGITS / temperature, dim=0)) < 20.5  # 5 degrees of freedom: p = 0.001
    assert chi_square(counts, torch.softmax(LOGITS / (temperature * 1.2), dim=0)) > 50  # a fifth more shows


@pytest.mark.parametrize("top_k", [2, 4])
def test_top_k_keeps_the_likeliest_in_their_proportions(top_k: int) -> None:
    kept = LOGITS.topk(top_k).indices
    counts = frequencies(LOGITS, top_k=top_k)
    assert counts[kept].sum() == N
    assert chi_square(counts[kept], torch.softmax(LOGITS[kept], dim=0)) < 16.3  # 3 degrees of freedom: p = 0.001


def test_top_k_above_the_vocabulary_means_all() -> None:
    assert torch.equal(frequencies(LOGITS, top_k=100), frequencies(LOGITS))


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
    with pytest.raises(IndexError):
        gpt.generate(torch.tensor([[V]]), 1)  # no such token
    assert gpt.training


def test_no_gradient_is_kept(make_gpt: MakeGPT) -> None:
    gpt, kept = make_gpt(), []
    gpt.register_forward_hook(lambda module, inputs, logits: kept.append(logits.requires_grad))
    gpt.generate(PROMPTS, 2)
    assert kept == [False, False]
    assert gpt(PROMPTS).requires_grad


def test_an_empty_prompt_is_refused(make_gpt: MakeGPT) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        make_gpt().generate(torch.empty(1, 0, dtype=torch.long), 3)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf, -math.inf])
def test_a_bad_temperature_is_refused(make_gpt: MakeGPT, temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature={temperature} "):
        make_gpt().generate(PROMPTS, 3, temperature=temperature)


@pytest.mark.parametrize("top_k", [0, -1, 2.5, math.nan, True])
def test_a_bad_top_k_is_refused(make_gpt: MakeGPT, top_k: Any) -> None:
    with pytest.raises(UserError, match=f"top_k={top_k} "):
        make_gpt().generate(PROMPTS, 3, top_k=top_k)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_no_numbers_are_refused(make_gpt: MakeGPT, value: float, temperature: float) -> None:
    gpt = make_gpt().train()
    with torch.no_grad():
        gpt.norm.bias.fill_(value)
    with pytest.raises(UserError, match="not finite"):
        gpt.generate(PROMPTS, 3, temperature=temperature)
    assert gpt.training
