"""Batches made by hand, and what is noted of a training on them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mingpt_lightning import GPT, LanguageModel
from mingpt_lightning.datamodule import IGNORE, Batch

V, T = 11, 8  # the sizes of `make_gpt`
plain_sgd = partial(torch.optim.SGD, lr=0.5)


class Loader:
    """The same few batches for ever. (Lightning would take each item of a list for a loader.)"""

    def __init__(self, *batches: Batch):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Batches(pl.LightningDataModule):
    """The same few batches for everything."""

    def __init__(self, *batches: Batch):
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Loader:
        return Loader(*self.batches)

    val_dataloader = test_dataloader = train_dataloader


class Losses(pl.Callback):
    """Notes the training loss of every batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.values.append(pl_module.train_loss.item())


def random_batch(counted: list[int], seed: int = 0) -> Batch:
    """Random tokens; of the targets in row i, `counted[i]` take loss."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (len(counted), T + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row, count in zip(targets, counted, strict=True):
        row[torch.randperm(T, generator=generator)[count:]] = IGNORE
    return tokens[:, :-1], targets


def by_hand(gpt: GPT, batches: list[Batch]) -> tuple[Tensor, int]:
    """The loss of each token that counts, added up one by one; and how many there are."""
    losses = []
    for inputs, targets in batches:
        logs = torch.log_softmax(gpt(inputs), dim=-1)
        for row, (tokens, log) in enumerate(zip(targets, logs, strict=True)):
            losses += [-log[t, tokens[t]] for t in range(T) if targets[row, t] != IGNORE]
    return (torch.stack(losses).sum() if losses else torch.tensor(0.0)), len(losses)


def weights(system: LanguageModel) -> Tensor:
    """All weights in one row."""
    return torch.cat([weight.detach().flatten() for weight in system.parameters()])


def difference(one: LanguageModel, other: LanguageModel) -> float:
    """How far apart the weights of two systems are at most."""
    return (weights(one) - weights(other)).abs().max().item()
