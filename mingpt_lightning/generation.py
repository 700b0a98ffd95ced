"""Sampling from a GPT: greedy, temperature, top-k.

It knows of tokens only; text is the tokenizer's business.
"""

import math

import torch
from torch import Tensor

from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.gpt import GPT


def check_sampling(temperature: float, top_k: int | None) -> None:
    """Raise UserError for a temperature or top_k that means nothing."""
    if not isinstance(temperature, int | float) or not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature={temperature} is not a number of at least 0", "temperature", "0 is greedy.")
    if top_k is not None:
        require_positive(top_k=top_k)


@torch.no_grad()
def generate(
    gpt: GPT,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Continue each row of `tokens` by `max_new_tokens` sampled tokens.

    tokens: (B, T) int64, T at least 1; returns (B, T + max_new_tokens). Past the block size, each new token sees the
    last block_size tokens.
    temperature: 0 takes the likeliest token, 1 samples from the model's distribution. top_k: sample among the k
    likeliest tokens only (more than the vocabulary means all). seed: the same seed gives the same tokens; None draws
    from torch's global generator.

    The GPT runs in evaluation mode, and its own mode is restored afterwards.
    Raises UserError for an empty prompt, a bad option, or logits that are not finite.
    """
    check_sampling(temperature, top_k)
    if tokens.shape[1] == 0:
        raise UserError("the prompt is empty", "prompt", "Give at least one token.")
    generator = None if seed is None else torch.Generator(tokens.device).manual_seed(seed)
    training = gpt.training
    gpt.eval()
    try:
        for _ in range(max_new_tokens):
            logits = gpt(tokens[:, -gpt.block_size :])[:, -1]
            tokens = torch.cat([tokens, sample(logits, temperature, top_k, generator)], dim=1)
    finally:
        gpt.train(training)
    return tokens


def sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token for each row of logits: (B, V) -> (B, 1)."""
    if not torch.isfinite(logits).all():
        raise UserError("the model's weights are not finite numbers", "generate", "Take an earlier checkpoint.")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    likeliest, candidates = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # sorted, (B, k)
    temperature = max(temperature, torch.finfo(logits.dtype).tiny)  # anything less would be 0 in this precision
    probabilities = torch.softmax((likeliest - likeliest[:, :1]) / temperature, dim=-1)
    return candidates.gather(-1, torch.multinomial(probabilities, 1, generator=generator))
