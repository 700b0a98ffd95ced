"""Addition of n-digit numbers, after minGPT's adder project.

For n=2, 85 + 50 = 135 is the sequence 8 5 5 0 5 3 1: the digits of both numbers, padded with zeros, then the sum
reversed, because that is the order in which one adds. The loss counts the sum only.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mingpt_lightning.datamodule import IGNORE, Batch, SequenceDataModule, Split
from mingpt_lightning.errors import UserError
from mingpt_lightning.shuffle import shuffle_digits, to_digits
from mingpt_lightning.tokenizer import Tokenizer

SPLIT_KEY = 1337  # of the permutation that splits the problems; never changes


class AdderTokenizer(Tokenizer):
    """Sums in the usual notation.

    >>> AdderTokenizer(ndigit=2).encode("6+39")
    [0, 6, 3, 9]
    >>> AdderTokenizer(ndigit=2).decode([0, 6, 3, 9, 5, 4, 0])
    '6+39=45'
    """

    name = "adder"
    vocab_size = 10

    def __init__(self, ndigit: int):
        super().__init__(ndigit=ndigit)
        self.ndigit = ndigit
        self.answer_length = ndigit + 1

    def encode(self, text: str) -> list[int]:
        numbers = re.fullmatch(r"\s*([0-9]+)\s*\+\s*([0-9]+)\s*=?\s*", text)
        if not numbers or max(map(len, numbers.groups())) > self.ndigit:
            what = f"{text!r} is not a sum of two numbers of at most {self.ndigit} digits"
            raise UserError(what, "prompt", 'Write it as prompt="85+50".')
        return [int(digit) for number in numbers.groups() for digit in number.zfill(self.ndigit)]

    def decode(self, tokens: Sequence[int]) -> str:
        n = self.ndigit
        a, b, reversed_sum = ("".join(map(str, part)) for part in (tokens[:n], tokens[n : 2 * n], tokens[2 * n :]))
        return f"{int(a)}+{int(b)}=" + (str(int(reversed_sum[::-1])) if reversed_sum else "")


class AdderDataset:
    """The problems of one split, each once: (B,) indices -> two (B, 3 * ndigit) tensors."""

    def __init__(self, ndigit: int, split: Split):
        self.ndigit = ndigit
        total = 100**ndigit
        n_test, n_val = min(total // 5, 500), min(total // 10, 500)
        end = min(total, 2**62)  # indices are int64; beyond ten digits a part of the problems is plenty
        ranges = {
            "test": range(n_test),
            "val": range(n_test, n_test + n_val),
            "train": range(n_test + n_val, end),
        }
        self.places = ranges[split]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor) -> Batch:
        n = self.ndigit
        places = indices.numpy() + self.places.start
        operands = shuffle_digits(to_digits(places, 10, 2 * n), 10, SPLIT_KEY)  # (B, 2n)
        powers = 10 ** np.arange(n)[::-1]
        sums = operands[:, :n] @ powers + operands[:, n:] @ powers
        sequence = torch.from_numpy(np.hstack([operands, to_digits(sums, 10, n + 1)[:, ::-1]]))
        inputs, targets = sequence[:, :-1], sequence[:, 1:].clone()
        targets[:, : 2 * n - 1] = IGNORE
        return inputs, targets


class AdderDataModule(SequenceDataModule):
    """Sums of two numbers of `ndigit` digits (1 to 18).

    The test split holds 500 problems (20 % of them for one digit), validation as many (10 %), training all others.
    """

    def __init__(self, ndigit: int = 2, batch_size: int = 64, seed: int = 0):
        super().__init__(batch_size, seed)
        if not 1 <= ndigit <= 18:
            raise UserError(f"ndigit={ndigit} is not possible", "ndigit", "Use 1 to 18.")
        self.ndigit = ndigit
        self.tokenizer = AdderTokenizer(ndigit)
        self.block_size = 3 * ndigit  # the last digit of the sum is never an input

    def dataset(self, split: Split) -> AdderDataset:
        return AdderDataset(self.ndigit, split)
