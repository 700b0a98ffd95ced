"""What a datamodule may give as a dataset, and a hash of its content."""

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""(inputs, targets), both (B, T) int64; a target of IGNORE takes no loss."""

WHOLE, PIECE = 2**30, 2**20
"""Bytes up to which an array is hashed whole; of a larger one, as many in all, in pieces spread over it."""


class SequenceDataset(Protocol):
    """A numbered collection of training sequences.

    One with an attribute `epoch_size` has an epoch of that many sequences at random, instead of each once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Batch:
        """The batch of these indices, (B,) int64 in [0, len)."""
        ...


def epoch_size(dataset: SequenceDataset) -> int:
    """How many sequences of a dataset are an epoch of training."""
    return int(getattr(dataset, "epoch_size", len(dataset)))


def content_hash(dataset: SequenceDataset) -> str:
    """A hash of the numbers that a dataset holds in memory or maps into it; empty where it holds none."""
    digest, found = hashlib.sha256(), False
    for array in arrays(dataset, []):
        found = True
        digest.update(f"{array.dtype} {array.shape}".encode())
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size else array
        if data.nbytes <= WHOLE:
            digest.update(data.data)
        else:
            for start in np.linspace(0, data.nbytes - PIECE, WHOLE // PIECE).astype(np.int64):
                digest.update(data[start : start + PIECE].data)
    return digest.hexdigest() if found else ""


def arrays(value: Any, above: list[Any]) -> Iterator[np.ndarray]:
    """The arrays, tensors and lists of numbers in an object, in its attributes, and in theirs; but no text.

    above: the objects that it is in.
    """
    if isinstance(value, Tensor):
        whole = value.detach().cpu().contiguous()
        yield whole.reshape(-1).view(torch.uint8).numpy() if value.dtype is torch.bfloat16 else whole.numpy()
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biufc":
            yield value
    elif isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
        yield np.asarray([item for item in value if isinstance(item, int | float)])
    elif not any(value is other for other in above):
        inside = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else None
        if inside is None and hasattr(value, "__getitem__"):  # a dataset in a dataset
            inside = [item for _, item in sorted(getattr(value, "__dict__", {}).items())]
        for item in inside or ():
            yield from arrays(item, [*above, value])
