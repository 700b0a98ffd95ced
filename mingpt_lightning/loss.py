"""Chunked cross-entropy from hidden states: the logits of a large vocabulary are never in memory all at once.

At 2,048 tokens of GPT-2's vocabulary, logits, their float32 copy, their logarithms and their gradient take 1.4 GB; in
chunks of `LOGITS` they take 0.4 GB at any batch size, in the same time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mingpt_lightning.gpt import GPT
from mingpt_lightning.structure import has_plain_head

LOGITS = {"cpu": 2**25}
"""The most logits in memory at once, by type of device; DEFAULT_LOGITS for all other types."""
DEFAULT_LOGITS = 2**31


def chunk_rows(device: torch.device, vocab_size: int) -> int:
    """The number of tokens per chunk; the logits of one chunk are in memory at once."""
    return max(1, LOGITS.get(device.type, DEFAULT_LOGITS) // vocab_size)


def cross_entropy_sum(gpt: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """The loss of `gpt.logits(hidden)` in nats, summed over the targets that aren't -100.

    hidden: (B, T, C), targets: (B, T). The gradient flows into hidden states and head. A head of one's own computes its
    logits a second time in the backward pass.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    rows = chunk_rows(hidden.device, gpt.config["vocab_size"])
    if len(hidden) <= rows or not torch.is_grad_enabled():
        return F.cross_entropy(gpt.logits(hidden).float(), targets, reduction="sum")
    rows = -(-len(hidden) // -(-len(hidden) // rows))  # as many chunks, alike
    if has_plain_head(gpt):
        return ChunkedCrossEntropy.apply(hidden, gpt.head.weight, targets, gpt.softcap, rows)

    def chunk_sum(states: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(gpt.logits(states).float(), wanted, reduction="sum")

    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.stack([checkpoint(chunk_sum, *chunk, use_reentrant=False) for chunk in chunks]).sum()


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a few rows at a time, gradients included: each chunk's logits are freed before the next."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, after: nn.Module, rows: int) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        trained = ctx.needs_input_grad[1]  # not beside an adapter
        matrix = weight.detach().to(dtype).requires_grad_(trained)  # cast once for all chunks
        total, hidden_grad, weight_grad = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(weight)
        chunks = (tensor.split(rows) for tensor in (hidden, targets, hidden_grad))
        for states, wanted, grad in zip(*chunks, strict=True):
            with torch.enable_grad():
                states = states.detach().to(dtype).requires_grad_()
                loss = F.cross_entropy(after(F.linear(states, matrix)).float(), wanted, reduction="sum")
            states_grad, *matrix_grad = torch.autograd.grad(loss, (states, matrix) if trained else (states,))
            grad.copy_(states_grad)
            for its in matrix_grad:
                weight_grad += its
            total += loss.detach()
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad.mul_(grad), weight_grad.mul_(grad), None, None, None
