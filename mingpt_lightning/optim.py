"""Parameter groups, and learning-rate schedules as pure functions of the step.

A schedule maps (step, total_steps) to a factor in [0, 1] of the peak learning rate; `LanguageModel` applies it after
every optimizer step. Adding one takes a function here (or anywhere) and a YAML in `configs/scheduler/`.
"""

from __future__ import annotations  # importing torch for the types would take seconds

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from mingpt_lightning.gpt import GPT

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], "Optimizer"]
"""Makes an optimizer from parameter groups, for example `functools.partial(torch.optim.AdamW, lr=1e-3)`."""

Schedule = Callable[[int, int], float]
"""(step, total_steps) -> factor of the peak learning rate."""


def parameter_groups(gpt: GPT) -> list[dict[str, Any]]:
    """Three groups by name: "hidden", the matrices inside of blocks; "embeddings", all other matrices; "vectors".

    Vectors (biases, the gains of norms) take no weight decay. A tied matrix is in its group once.
    Source: nanoGPT, `GPT.configure_optimizers`; the difference between matrices is Muon's.
    """
    hidden: list[Tensor] = []
    embeddings: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, weight in gpt.named_parameters():
        if weight.requires_grad:
            (vectors if weight.dim() < 2 else hidden if name.startswith("blocks.") else embeddings).append(weight)
    return [
        {"name": "hidden", "params": hidden},
        {"name": "embeddings", "params": embeddings},
        {"name": "vectors", "params": vectors, "weight_decay": 0.0},
    ]


def lr_for_width(lr: float, n_embd: int) -> float:
    """Transfer a learning rate tuned at width 768 to width `n_embd`: lr * 768 / n_embd.

    Wider models want smaller steps. Source: Yang et al. 2022, "Tensor Programs V", table 3 (Adam, hidden weights).
    """
    return lr * 768 / n_embd


def cosine(step: int, total_steps: int, *, warmup: float = 0.1, floor: float = 0.0) -> float:
    """Linear warm-up over the first `warmup` fraction of the steps, then half a cosine down to `floor`.

    Source: Loshchilov & Hutter 2017, section 3; the warm-up as in nanoGPT's `get_lr`.
    """
    return _warm(step, total_steps, warmup) or floor + (1 - floor) * 0.5 * (
        1 + math.cos(math.pi * _progress(step, total_steps, warmup))
    )


def linear(step: int, total_steps: int, *, warmup: float = 0.1, floor: float = 0.0) -> float:
    """Linear warm-up over the first `warmup` fraction of the steps, then a straight line down to `floor`."""
    return _warm(step, total_steps, warmup) or 1 - (1 - floor) * _progress(step, total_steps, warmup)


def wsd(step: int, total_steps: int, *, warmup: float = 0.0, decay: float = 0.5, floor: float = 0.0) -> float:
    """Warm-up, stable, decay: the peak until the last `decay` fraction of all steps, then a straight line to `floor`.

    Source: Hu et al. 2024, "MiniCPM", section 4.
    """
    if (factor := _warm(step, total_steps, warmup)) is not None:
        return factor
    left = max(0, total_steps - step) / max(1, decay * total_steps)
    return floor + (1 - floor) * min(1.0, left)


def constant(step: int, total_steps: int, *, warmup: float = 0.0) -> float:
    """Linear warm-up over the first `warmup` fraction of the steps, then the peak for ever."""
    return _warm(step, total_steps, warmup) or 1.0


def _warm(step: int, total_steps: int, warmup: float) -> float | None:
    """The factor of the warm-up, or None when it is over. It is above zero at the first step."""
    steps = int(warmup * total_steps)
    return (step + 1) / (steps + 1) if step < steps else None


def _progress(step: int, total_steps: int, warmup: float) -> float:
    """The fraction, in [0, 1], of the steps after the warm-up that are done."""
    start = int(warmup * total_steps)
    return min(1.0, (step - start) / max(1, total_steps - start))
