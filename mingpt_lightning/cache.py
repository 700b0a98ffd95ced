"""The key/value cache: what a GPT has read of each row, so that a new token costs one token's work."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mingpt_lightning.gpt import GPT


class Cache:
    """Keys and values of what each row has read, preallocated: (n_layer, 2, B, H, size, D).

    rows: how many sequences, B. size: how many tokens of each at most; no more than the GPT's block_size is useful.
    Rows start together, from nothing; then they grow by one token each, from lengths that may differ: after reading
    prompts that were padded at their end, set `lengths` to what is true of each, and the padding is overwritten.
    """

    def __init__(self, gpt: GPT, rows: int, size: int):
        weight, heads = gpt.token_embedding.weight, gpt.config["n_head"]
        shape = (gpt.config["n_layer"], 2, rows, heads, size, weight.shape[1] // heads)
        # float32 on a CPU, where attention in bfloat16 takes four times as long for a single token
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        self.memory = torch.empty(shape, dtype=dtype, device=weight.device)
        self.layers = [tuple(layer) for layer in self.memory]  # of (keys, values), each (B, H, size, D)
        self.lengths = [0] * rows  # tokens that are read

    def advance(self, T: int) -> Tensor:
        """Make room for T more tokens in every row (1, where lengths differ); returns their positions, (B or 1, T)."""
        device, before = self.memory.device, self.lengths
        self.lengths = [length + T for length in before]
        self.used = max(self.lengths)
        self.places: tuple[Any, ...]
        if len(set(before)) == 1:  # all rows write to the same places, and see the same ones
            self.places = slice(None), slice(None), slice(before[0], self.used)
            self.mask = None
            return torch.arange(before[0], self.used, device=device)[None]
        positions = torch.tensor(before, device=device)
        rows, heads = (torch.arange(n, device=device) for n in self.memory.shape[2:4])
        self.places = rows[:, None, None], heads[:, None], positions[:, None, None]  # (B, H, 1)
        # A shorter row doesn't see this place, but 0 times what lies in fresh memory could be NaN.
        self.memory[:, :, :, :, self.used - 1] = 0
        self.mask = (torch.arange(self.used, device=device) <= positions[:, None])[:, None, None]  # (B, 1, 1, used)
        return positions[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep the (B, H, T, D) keys and values of new tokens; returns all that there are, and what a row may see."""
        keys, values = self.layers[layer]
        keys[self.places], values[self.places] = k, v
        return keys[:, :, : self.used], values[:, :, : self.used], self.mask

    def copy(self, rows: Sequence[int], other: "Cache", other_rows: Sequence[int]) -> None:
        """Let `rows` have read what `other_rows` of a cache of no greater size have."""
        size = other.memory.shape[4]
        for row, other_row in zip(rows, other_rows, strict=True):
            self.memory[:, :, row, :, :size] = other.memory[:, :, other_row]
            self.lengths[row] = other.lengths[other_row]
