"""The contestants in training: ours, ours with a padded vocabulary, and nanoGPT, each with its loss and optimizer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_gpt2.device import DEVICE, attention_kernels, feed, no_waiting, peak_memory, release, timed
from benchmarks.gpu_gpt2.plan import Plan
from benchmarks.peers import loss, nanogpt_like, quiet
from mingpt_lightning import GPT
from mingpt_lightning.datamodule import Batch, BatchLoader, WindowDataset
from mingpt_lightning.optim import parameter_groups

ADAMW: dict[str, Any] = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
PARITY_STEPS = 5
OURS, PADDED, NANOGPT = "ours", "ours, padded vocabulary", "nanoGPT"

LossFunction = Callable[[Any, Tensor, Tensor], Tensor]


def random_text(plan: Plan, rows: int) -> BatchLoader:
    """Batches of random tokens, always the same."""
    length = 200 * plan.T * max(plan.batches)
    tokens = np.random.default_rng(0).integers(plan.model.vocab_size, size=length, dtype=np.uint16)
    return BatchLoader(WindowDataset(tokens, plan.T, stride=1), rows, shuffle_seed=0)


def our_loss(gpt: GPT, inputs: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The mean loss; columns from `vocab_size` on are ignored."""
    logits = gpt.logits(gpt.hidden(inputs))[..., :vocab_size]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Contestant:
    """A model in training, on the device."""

    def __init__(self, name: str, plan: Plan, peers: Path | None, *, padded: bool, compiled: bool):
        gpt = plan.gpt(padded).to(DEVICE)
        self.strict = name != NANOGPT and compiled
        self.model: Any = gpt
        self.loss: LossFunction
        self.optimizer: torch.optim.Optimizer
        if name == NANOGPT:
            assert peers is not None
            self.model, self.loss = nanogpt_like(gpt, peers).to(DEVICE), loss
            with quiet():
                settings = ADAMW["weight_decay"], ADAMW["lr"], ADAMW["betas"], DEVICE.type
                self.optimizer = self.model.configure_optimizers(*settings)
            self.model = torch.compile(self.model) if compiled else self.model
        else:
            self.optimizer = torch.optim.AdamW(parameter_groups(gpt), **ADAMW, fused=True)

            def mean_loss(gpt: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
                return our_loss(gpt, inputs, targets, plan.model.vocab_size)

            self.loss = torch.compile(mean_loss, dynamic=False, fullgraph=True) if compiled else mean_loss

    def step(self, batch: Batch) -> Tensor:
        """One training step; returns the loss without waiting for it."""
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = self.loss(self.model, *batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def losses(self, batches: Iterator[Batch], steps: int) -> list[float]:
        """The losses of some steps."""
        return torch.stack([self.step(next(batches)) for _ in range(steps)]).tolist()

    def seconds_per_step(self, batches: Iterator[Batch], steps: int) -> float:
        """How long a step takes, after two warm-up steps. Ours does not wait for the device in between."""

        def run() -> None:
            with no_waiting(self.strict):
                for _ in range(steps):
                    self.step(next(batches))

        self.losses(batches, 2)
        return timed(run) / steps


def turns(name: str, plan: Plan, peers: Path | None, rounds: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """What a contestant does in its turns: for each batch size, a first one that compiles, then the timed ones."""
    for rows in plan.batches:
        torch._dynamo.reset()  # or nanoGPT would be compiled for any batch size from the second one on
        contestant = Contestant(name, plan, peers, padded=name != OURS, compiled=compiled)
        yield from turns_of(contestant, feed(random_text(plan, rows), plan.T), plan.steps, rounds)
        del contestant
        release()


def turns_of(contestant: Contestant, batches: Iterator[Batch], steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The same for one batch size."""
    first = timed(lambda: contestant.step(next(batches)))
    losses = contestant.losses(batches, PARITY_STEPS)
    kernels = attention_kernels(lambda: contestant.step(next(batches)))
    release()
    yield {"first": first, "losses": losses, "kernels": kernels}
    for _ in range(rounds):
        peak_memory()
        step = contestant.seconds_per_step(batches, steps)
        peak = peak_memory()
        release()
        yield {"step": step, "peak": peak}
