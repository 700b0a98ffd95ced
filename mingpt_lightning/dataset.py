"""What a datamodule may give as a dataset: whole batches by index, or single examples, as torch has them.

Also a hash of what a dataset holds.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mingpt_lightning.errors import UserError

Batch = tuple[Tensor, Tensor]
"""(inputs, targets), both (B, T) int64; a target of IGNORE takes no loss."""

INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64)

WHOLE, PIECE = 2**30, 2**20
"""Bytes up to which an array is hashed whole; of a larger one, as many in all, in pieces spread over it."""


class SequenceDataset(Protocol):
    """A numbered collection of training sequences.

    One with an attribute `epoch_size` has an epoch of that many sequences at random, instead of each once. One with
    `ragged` makes batches of different lengths T, which padding makes of sequences of different lengths.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Batch:
        """The batch of these indices, (B,) int64 in [0, len)."""
        ...


class ExampleDataset:
    """A dataset with one example, (inputs, targets) of (T,) token ids, at an integer; collated by torch.

    Slower than one that makes whole batches. Raises UserError for an example of another form.
    """

    def __init__(self, examples: Any):
        self.examples = examples
        self.epoch_size = epoch_size(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: Tensor) -> Batch:
        chosen = [self.examples[index] for index in indices.tolist()]
        try:
            batch = default_collate(chosen)
        except (RuntimeError, TypeError) as error:  # of other types, or of different lengths
            shapes = sorted({describe(example) for example in chosen})
            raise self.unexpected(" and ".join(shapes[:2])) from error
        if not is_batch(batch, len(indices), INTEGERS):
            raise self.unexpected(describe(chosen[0]))
        inputs, targets = batch
        return inputs.long(), targets.long()

    def unexpected(self, found: str) -> UserError:
        """The error for examples of another form than expected."""
        what = f"the examples of {type(self.examples).__name__} are {found}"
        fix = "Expected of dataset[index]: (inputs, targets), two tensors of T token ids each, T the same for all."
        return UserError(what, "dataset", fix)


def as_sequences(dataset: Any, block_size: int | None = None) -> SequenceDataset:
    """A dataset itself, if it makes whole batches; else one that makes them of its examples.

    Raises UserError for what is neither, and for sequences of more than `block_size` tokens.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        fix = "Expected: an object with a length, and with (inputs, targets) at dataset[index]."
        raise UserError(f"a {type(dataset).__name__} is no dataset", "dataset", fix)
    sequences: SequenceDataset = dataset
    if len(dataset) and not isinstance(dataset, ExampleDataset):
        two = torch.tensor([0, len(dataset) - 1])
        try:
            if not is_batch(dataset[two], 2, (torch.int64,)):
                sequences = ExampleDataset(dataset)
        except Exception:  # whatever an index of another type leads to
            sequences = ExampleDataset(dataset)
            sequences[two]  # its errors are shown with the first one
    if len(dataset) and block_size is not None:
        length = sequences[torch.zeros(1, dtype=torch.long)][0].shape[1]
        if length > block_size:
            what = f"the sequences of {type(dataset).__name__} have {length} tokens, more than block_size={block_size}"
            raise UserError(what, "block_size", f"Give the datamodule block_size={length}.")
    return sequences


def is_batch(value: Any, rows: int, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether a value is (inputs, targets), both (rows, T), of one of these types."""
    if not isinstance(value, tuple | list) or not all(isinstance(part, Tensor) for part in value):
        return False
    shapes = {tuple(part.shape) for part in value}
    good = len(shapes) == 1 and all(len(shape) == 2 and shape[0] == rows and shape[1] for shape in shapes)
    return len(value) == 2 and good and all(part.dtype in dtypes for part in value)


def describe(example: Any) -> str:
    """An example in a few words."""
    if isinstance(example, dict):
        return f"a dict of {', '.join(map(str, list(example)[:5]))}"
    if isinstance(example, tuple | list):
        return f"({', '.join(map(describe, example[:3]))}{', …' * (len(example) > 3)})"
    if isinstance(example, Tensor | np.ndarray):
        return f"{str(example.dtype).removeprefix('torch.')} of shape {tuple(example.shape)}"
    return type(example).__name__


def epoch_size(dataset: Any) -> int:
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
