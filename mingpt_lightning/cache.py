"""The key/value cache: the keys and values of the tokens so far, so that a new token costs one token's work."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of `rows` sequences of up to `size` tokens: (n_layer, 2, B, H, size, D).

    Rows start together, empty; then they grow by one token each, from lengths that may differ: after a prefill with
    prompts that were padded at their end, set `lengths` to the true ones, and the padding is overwritten.
    """

    def __init__(
        self, n_layer: int, n_head: int, head_size: int, rows: int, size: int, dtype: torch.dtype, device: torch.device
    ):
        # float32 on a CPU, where attention in bfloat16 takes four times as long for a single token
        dtype = torch.float32 if device.type == "cpu" else dtype
        self.memory = torch.empty((n_layer, 2, rows, n_head, size, head_size), dtype=dtype, device=device)
        self.layers = [tuple(layer) for layer in self.memory]  # of (keys, values), each (B, H, size, D)
        self.lengths = [0] * rows  # tokens in the cache
        self.extended: list[int] = []  # the layers that have stored the newest tokens

    def advance(self, T: int) -> Tensor:
        """Reserve T more places in every row (1, where lengths differ); returns their positions, (B or 1, T)."""
        device, before = self.memory.device, self.lengths
        self.lengths = [length + T for length in before]
        self.used = max(self.lengths)
        self.extended = []
        self.places: tuple[Any, ...]
        if len(set(before)) == 1:  # all rows write to and see the same places
            self.places = slice(None), slice(None), slice(before[0], self.used)
            self.mask = None
            return torch.arange(before[0], self.used, device=device)[None]
        positions = torch.tensor(before, device=device)
        rows, heads = (torch.arange(n, device=device) for n in self.memory.shape[2:4])
        self.places = rows[:, None, None], heads[:, None], positions[:, None, None]  # (B, H, 1)
        # The mask hides this place from shorter rows, but 0 times uninitialised memory could be NaN.
        self.memory[:, :, :, :, self.used - 1] = 0
        self.mask = (torch.arange(self.used, device=device) <= positions[:, None])[:, None, None]  # (B, 1, 1, used)
        return positions[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the (B, H, T, D) keys and values of new tokens; returns those of all tokens so far, and a mask."""
        self.extended.append(layer)
        keys, values = self.layers[layer]
        keys[self.places], values[self.places] = k, v
        return keys[:, :, : self.used], values[:, :, : self.used], self.mask

    @property
    def is_complete(self) -> bool:
        """Whether each layer has stored the newest tokens, once: layers of one's own may know nothing of a cache."""
        return self.extended == list(range(len(self.layers)))

    def copy(self, rows: Sequence[int], other: "KVCache", other_rows: Sequence[int]) -> None:
        """Copy `other_rows` of a cache of no greater size into `rows`."""
        size = other.memory.shape[4]
        for row, other_row in zip(rows, other_rows, strict=True):
            self.memory[:, :, row, :, :size] = other.memory[:, :, other_row]
            self.lengths[row] = other.lengths[other_row]
