"""Sorting of short digit sequences, after minGPT's demo notebook.

0 0 2 1 0 1 is followed by its sorted copy, 0 0 0 1 1 2; the loss counts the copy only.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mingpt_lightning.datamodule import IGNORE, Batch, SequenceDataModule, Split
from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.shuffle import mix, shuffle_digits, to_digits
from mingpt_lightning.tokenizer import Tokenizer

SPLIT_KEY = 1337  # of the permutation that splits the sequences; never changes
DRAWS = 4  # an input with many repeats is the one with the fewest different digits of so many draws


class SortTokenizer(Tokenizer):
    """Digit sequences, with or without spaces between the digits; digits above 9 need spaces.

    >>> SortTokenizer(length=6, num_digits=3).encode("002101")
    [0, 0, 2, 1, 0, 1]
    >>> SortTokenizer(length=6, num_digits=3).decode([0, 0, 2, 1, 0, 1, 0, 0, 0, 1, 1, 2])
    '0 0 2 1 0 1 -> 0 0 0 1 1 2'
    """

    name = "sort"

    def __init__(self, length: int, num_digits: int):
        super().__init__(length=length, num_digits=num_digits)
        self.length = length
        self.num_digits = num_digits
        self.answer_length = length

    @property
    def vocab_size(self) -> int:
        return self.num_digits

    def encode(self, text: str) -> list[int]:
        given = text.strip().removesuffix("->").strip()
        words = re.split(r"[\s,]+", given) if re.search(r"[\s,]", given) else list(given)
        tokens = [int(word) for word in words if re.fullmatch(r"[0-9]+", word)]
        if len(tokens) != self.length or len(words) != self.length or max(tokens) >= self.num_digits:
            what = f"{text!r} is not {self.length} digits from 0 to {self.num_digits - 1}"
            example = " ".join(str(i * 7 % self.num_digits) for i in range(self.length))
            raise UserError(what, "prompt", f'Write it as prompt="{example}".')
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        given, answer = (" ".join(map(str, part)) for part in (tokens[: self.length], tokens[self.length :]))
        return f"{given} -> {answer}"


class SortDataset:
    """The sequences of one split: (B,) indices -> two (B, 2 * length - 1) tensors.

    In training, each sequence comes once, and as many more come from among those with many repeats, which are rare
    and hard.
    """

    def __init__(self, length: int, num_digits: int, split: Split):
        self.length = length
        self.num_digits = num_digits
        total = min(num_digits**length, 2**61)
        n_test, n_val = min(total // 4, 5000), min(total // 10, 5000)
        ranges = {
            "test": range(n_test),
            "val": range(n_test, n_test + n_val),
            "train": range(n_test + n_val, total),
        }
        self.places = ranges[split]
        self.extra = len(self.places) if split == "train" else 0

    def __len__(self) -> int:
        return len(self.places) + self.extra

    def __getitem__(self, indices: Tensor) -> Batch:
        numbers = indices.numpy()
        digits = self.sequences(numbers % len(self.places))
        repeats = numbers >= len(self.places)
        if repeats.any():
            digits[repeats] = self.with_repeats(numbers[repeats])
        sequence = torch.from_numpy(np.hstack([digits, np.sort(digits, axis=1)]))
        inputs, targets = sequence[:, :-1], sequence[:, 1:].clone()
        targets[:, : self.length - 1] = IGNORE
        return inputs, targets

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """(B,) indices below len(places) -> (B, length) digits."""
        digits = to_digits(indices + self.places.start, self.num_digits, self.length)
        return shuffle_digits(digits, self.num_digits, SPLIT_KEY)

    def with_repeats(self, numbers: np.ndarray) -> np.ndarray:
        """Of DRAWS sequences of this split, the one with the fewest different digits: (B,) -> (B, length)."""
        places = np.uint64(len(self.places))
        draws = np.stack(
            [self.sequences((mix(numbers, draw) % places).astype(np.int64)) for draw in range(DRAWS)]
        )  # (DRAWS, B, length)
        different = 1 + (np.diff(np.sort(draws, axis=2), axis=2) > 0).sum(axis=2)
        return draws[different.argmin(axis=0), np.arange(len(numbers))]


class SortDataModule(SequenceDataModule):
    """Sequences of `length` digits out of `num_digits` different ones, and their sorted copies.

    A quarter of all sequences (at most 5,000) is for the test, a tenth (at most 5,000) for validation.
    """

    def __init__(self, length: int = 6, num_digits: int = 3, batch_size: int = 64, seed: int = 0):
        super().__init__(batch_size, seed)
        require_positive(length=length, num_digits=num_digits)
        if num_digits**length < 10:
            what = f"there are only {num_digits**length} sequences of length={length} with num_digits={num_digits}"
            raise UserError(what, "num_digits", "Use at least 10, so that each split gets one.")
        self.length = length
        self.num_digits = num_digits
        self.tokenizer = SortTokenizer(length, num_digits)
        self.block_size = 2 * length - 1  # the last digit of the copy is never an input

    def dataset(self, split: Split) -> SortDataset:
        return SortDataset(self.length, self.num_digits, split)
