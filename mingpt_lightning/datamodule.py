"""Sequences for a GPT: whole batches by index, in an order that is computed, not stored.

A dataset turns a tensor of indices into one batch at once. `BatchLoader` decides which index comes when: a pure
function of (seed, step), so memory doesn't grow with the data, and the batch of any step can be recomputed.
`SequenceDataModule` combines the two; projects derive from it and define what the tokens mean.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from mingpt_lightning.dataset import Batch as Batch
from mingpt_lightning.dataset import SequenceDataset, as_sequences, content_hash, epoch_size
from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.shuffle import mix, permute
from mingpt_lightning.tokenizer import Tokenizer

IGNORE = -100
"""A target that takes no loss."""

TOKENS_AT_ONCE = 2**16
"""How many tokens a loader computes together: below this, numpy's overhead per call dominates."""

Split = Literal["train", "val", "test"]


class WindowDataset:
    """Windows of a text: (B,) indices -> two (B, block_size) tensors, the second one token ahead.

    stride: how far apart windows start. 1 gives every window; block_size gives windows that don't overlap, the last
    of which takes no loss for what the one before has already counted.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, stride: int):
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride
        self.last = len(tokens) - block_size - 1  # where the last window starts

    def __len__(self) -> int:
        return self.windows(self.stride)

    @property
    def epoch_size(self) -> int:
        """As many windows as cover the text once: at most those that don't overlap."""
        return self.windows(max(self.stride, self.block_size))

    def windows(self, stride: int) -> int:
        """How many windows there are at a stride."""
        return 0 if self.last < 0 else -(-self.last // stride) + 1

    def __getitem__(self, indices: Tensor) -> Batch:
        wanted = indices * self.stride
        starts = wanted.clamp(max=self.last)
        windows = self.tokens[starts.numpy()[:, None] + np.arange(self.block_size + 1)]
        sequence = torch.from_numpy(windows.astype(np.int64))
        inputs, targets = sequence[:, :-1], sequence[:, 1:]
        counted = (wanted - starts)[:, None]  # by the window before
        if counted.any():
            targets = targets.masked_fill(torch.arange(self.block_size) < counted, IGNORE)
        return inputs, targets


def check_split(split: Sequence[float]) -> None:
    """Raise UserError for fractions of training, validation and test that don't add up to 1."""
    if len(split) != 3 or min(split) < 0 or not split[0] or abs(sum(split) - 1) > 1e-6:
        fix = "Give the fractions for training, validation and test, such as [0.9,0.05,0.05]."
        raise UserError(f"split={list(split)} does not add up to 1", "split", fix)


def split_bounds(
    length: int, split: Sequence[float], block_size: int, name: str, unit: str
) -> dict[Split, tuple[int, int]]:
    """Where the splits of a text start and end, in order. Raises UserError for one that is too short for a window.

    length: of the text, in tokens; `name` and `unit` are what the error calls it and them.
    """
    first, second = int(split[0] * length), int((split[0] + split[1]) * length + 1e-6)
    bounds: dict[Split, tuple[int, int]] = {"train": (0, first), "val": (first, second), "test": (second, length)}
    for (part, (start, end)), share in zip(bounds.items(), split, strict=True):
        if share:
            check_length(part, end - start, block_size, name, unit)
    return bounds


def check_length(part: str, length: int, block_size: int, name: str, unit: str) -> None:
    """Raise UserError for a split that is too short for a window; arguments as for `split_bounds`."""
    if length < block_size + 1:
        what = f"the {part} split of {name} has {length} {unit}, too few for block_size={block_size}"
        fix = f"Give more text, or block_size={length - 1} or less." if length > 1 else "Give more text."
        raise UserError(what, "block_size", fix)


class SequenceDataModule(pl.LightningDataModule):
    """Train, validation and test loaders over three disjoint datasets.

    A project sets `tokenizer` and `block_size` in its constructor and implements `dataset`. `vocab_size`,
    `block_size` and `tokenizer` can be read right after the constructor. batch_size is in sequences; the order of the
    training data follows from `seed`, the splits do not.
    """

    tokenizer: Tokenizer
    block_size: int

    sources: ClassVar[tuple[str, ...]] = ("path", "train_path", "val_path", "test_path", "data_dir")
    """Constructor arguments that say where the data is: where its `fingerprint` is the same, so is the data."""

    def __init__(self, batch_size: int, seed: int = 0):
        super().__init__()
        require_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.seed = seed

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are."""
        return self.tokenizer.vocab_size

    def dataset(self, split: Split) -> SequenceDataset:
        """The sequences of one split. No sequence is in two of them.

        A torch dataset, with one example at an integer, will do too.
        """
        raise UserError(f"{type(self).__name__} has no dataset(split)", "dataset", "Define that method.")

    def sequences(self, split: Split) -> SequenceDataset:
        """`dataset`, which makes whole batches here whatever it is."""
        return as_sequences(self.dataset(split), self.block_size)

    @cached_property
    def fingerprint(self) -> str:
        """A hash that identifies the data: of each split's length, of sequences spread over it, and of its arrays.

        The last comes after the others, which an earlier version had alone.
        """
        digest, contents = hashlib.sha256(), []
        for split in get_args(Split):
            dataset = self.sequences(split)
            digest.update(f"{split} {len(dataset)}".encode())
            if len(dataset):
                places = torch.linspace(0, len(dataset) - 1, 64, dtype=torch.float64).long()
                for tensor in dataset[places]:
                    digest.update(tensor.numpy().tobytes())
            contents.append(content_hash(dataset))
        return digest.hexdigest() + (hashlib.sha256(str(contents).encode()).hexdigest() if any(contents) else "")

    @cached_property
    def epoch_size(self) -> int:
        """How many sequences are an epoch of training."""
        return epoch_size(self.sequences("train"))

    def loader(self, dataset: SequenceDataset, batch_size: int, shuffle_seed: int | None = None) -> "BatchLoader":
        """A loader for this process; with n processes, a global batch has n times `batch_size` sequences."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return BatchLoader(dataset, batch_size, shuffle_seed, rank, world_size)

    def train_dataloader(self) -> "BatchLoader":
        loader = self.loader(self.sequences("train"), self.batch_size, shuffle_seed=self.seed)
        if self.trainer and (share := self.trainer.overfit_batches):  # type: ignore[attr-defined]
            loader.distinct = max(1, int(share * len(loader))) if isinstance(share, float) else share
        if self.trainer and self.trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
            before = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready  # batches that were trained
            loader.step = before
        return loader

    def val_dataloader(self) -> "BatchLoader":
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> "BatchLoader":
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: Split) -> "BatchLoader":
        """Every sequence of a split once, in order; short sequences in larger batches, as there are no gradients."""
        return self.loader(self.sequences(split), max(self.batch_size, 16384 // self.block_size))


class BatchLoader:
    """Batches of a dataset, in order or shuffled.

    In order (shuffle_seed None): each index once; the last batch may be short.
    Shuffled: an endless stream of permutations of the indices, cut into batches that are all full, also where
    batch_size is more than the dataset has. Which index comes when is a pure function of (shuffle_seed, step). One
    iteration yields `len` batches, an epoch of the dataset's `epoch_size`, and the next one continues where it ended.

    `distinct` is how many batches there are, over and over, to overfit to; None for no limit.

    Each of `world_size` processes yields `batch_size` sequences of every global batch: together they see what one
    process with a batch of world_size * batch_size would see.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        dataset = as_sequences(dataset)
        if not len(dataset):
            raise UserError("there is no sequence in the data", "split", "Give more data, or a larger split.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.rank = rank
        self.global_batch_size = batch_size * world_size
        self.step = 0
        self.distinct: int | None = None
        self.resumed = False
        length = dataset[torch.zeros(1, dtype=torch.long)][0].shape[1]
        ragged = getattr(dataset, "ragged", False)  # a batch is as long as its longest sequence
        self.steps_at_once = 1 if ragged else max(1, TOKENS_AT_ONCE // (batch_size * length))

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.shuffle_seed is None:
            return -(-len(self.dataset) // self.global_batch_size)
        return max(1, epoch_size(self.dataset) // self.global_batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.shuffle_seed is None:
            self.step = self.step % len(self) if self.resumed else 0
            end = len(self)
        else:
            end = self.step + len(self)
        self.resumed = False
        while self.step < end:
            steps = min(self.steps_at_once, end - self.step)
            inputs, targets = self.batches(self.step, steps)
            for batch in zip(inputs.split(self.batch_size), targets.split(self.batch_size), strict=True):
                self.step += 1
                yield batch

    def batches(self, step: int, steps: int = 1) -> Batch:
        """The sequences of `steps` steps from a step on, counted from 0 over all epochs, as one large batch."""
        return self.dataset[torch.from_numpy(self.indices(step, steps))]

    def indices(self, step: int, steps: int = 1) -> np.ndarray:
        """The indices of the sequences of `steps` steps from a step on: (steps * batch_size,) int64."""
        size = len(self.dataset)
        numbers = np.arange(step, step + steps) % (self.distinct or step + steps)
        starts = numbers * self.global_batch_size + self.rank * self.batch_size
        places = (starts[:, None] + np.arange(self.batch_size)).ravel()
        if self.shuffle_seed is None:
            return places[places < size]
        epochs, places = np.divmod(places, size)
        return permute(places, size, key=mix(epochs, key=self.shuffle_seed))

    def state_dict(self) -> dict[str, int]:
        """The position, in sequences of all processes. Lightning saves it in a checkpoint."""
        return {"sequences": self.step * self.global_batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from there. Raises UserError where no batch of this size begins."""
        self.step, rest = divmod(state["sequences"], self.global_batch_size)
        if rest:
            size = self.global_batch_size
            what = f"the run has read {state['sequences']:,} sequences, no whole number of batches of {size}"
            raise UserError(what, "batch_size", "Resume with the run's own batch_size times devices.")
        self.resumed = True
