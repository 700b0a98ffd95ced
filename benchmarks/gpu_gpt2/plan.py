"""What is measured: the sizes of the model, batches and prompts; full, and tiny for a test of the script."""

from typing import NamedTuple

import torch

from benchmarks.peers import Sizes
from mingpt_lightning import GPT


class Plan(NamedTuple):
    """The model and its padded vocabulary, then what training and generation are measured with."""

    model: Sizes = Sizes()
    padded_size: int = 50304
    parity_rows: int = 8
    batches: tuple[int, ...] = (16, 32, 64)
    steps: int = 20
    prompt: int = 32
    new: int = 224
    rows: tuple[int, ...] = (1, 32)

    @property
    def T(self) -> int:
        return self.model.block_size

    def gpt(self, padded: bool = False) -> GPT:
        """A GPT, always with the same weights."""
        torch.manual_seed(0)
        gpt = GPT(**self.model._asdict())
        if padded:
            gpt.grow_vocabulary(self.padded_size)
        return gpt


TINY = Plan(Sizes(2, 2, 64, 500, 32), 512, 4, (2, 4), 2, 8, 24, (1, 4))
