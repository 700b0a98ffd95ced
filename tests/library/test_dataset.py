"""Datasets as torch has them: one example at an index."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mingpt_lightning import CharTokenizer, LanguageModel, SequenceDataModule, UserError
from mingpt_lightning.datamodule import BatchLoader, Split, WindowDataset
from mingpt_lightning.dataset import as_sequences
from tests.common import MakeGPT, MakeTrainer

TOKENS = np.arange(200) % 11
WINDOWS = WindowDataset(TOKENS, 8, 1)


class Examples(Dataset):
    """The windows of `WINDOWS` one by one, as minGPT's CharDataset makes them."""

    def __init__(self, convert: Any = torch.tensor, length: int = len(WINDOWS)):
        self.convert, self.length = convert, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        chunk = TOKENS[index : index + 9]
        return self.convert(chunk[:-1]), self.convert(chunk[1:])


class Form(Examples):
    """Examples of another form."""

    def __init__(self, form: Any):
        super().__init__()
        self.form = form

    def __getitem__(self, index: int) -> Any:
        return self.form(super().__getitem__(index), index)


ACCEPTED = {
    "tensors": Examples(),
    "short integers": Examples(lambda row: torch.tensor(row, dtype=torch.int32)),
    "bytes": Examples(lambda row: torch.tensor(row, dtype=torch.uint8)),
    "arrays": Examples(np.asarray),
    "a list": [Examples()[index] for index in range(len(WINDOWS))],
    "a subset": Subset(Examples(), range(len(WINDOWS))),
    "two in a row": ConcatDataset([Subset(Examples(), range(50)), Subset(Examples(), range(50, len(WINDOWS)))]),
    "whole batches": TensorDataset(*WINDOWS[torch.arange(len(WINDOWS))]),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_batches_are_the_same_from_examples(kind: str) -> None:
    usual = BatchLoader(WINDOWS, 16, shuffle_seed=3)
    loader = BatchLoader(ACCEPTED[kind], 16, shuffle_seed=3)
    for step in (0, 7):
        for ours, theirs in zip(usual.batches(step, steps=2), loader.batches(step, steps=2), strict=True):
            assert theirs.dtype == torch.int64
            assert torch.equal(ours, theirs)


REFUSED = {
    "dict": (
        Form(lambda pair, _: dict(zip(("input_ids", "labels"), pair, strict=True))),
        "a dict of input_ids, labels",
    ),
    "one tensor": (Form(lambda pair, _: pair[0]), "int64 of shape (8,)"),
    "three": (Form(lambda pair, _: (*pair, pair[0])), "(int64 of shape (8,), int64 of shape (8,), int64 of"),
    "numbers": (Form(lambda *_: (1, 2)), "(int, int)"),
    "text": (Form(lambda *_: "the cat"), "str"),
    "nothing": (Form(lambda *_: None), "NoneType"),
    "fractions": (Form(lambda pair, _: (pair[0].float(), pair[1])), "(float32 of shape (8,), int64 of shape (8,))"),
    "two lengths": (Form(lambda pair, _: (pair[0], pair[1][:-1])), "(int64 of shape (8,), int64 of shape (7,))"),
    "other lengths": (Form(lambda pair, i: tuple(part[: i + 1] for part in pair)), "(int64 of shape (1,), int64 of"),
    "matrices": (Form(lambda pair, _: tuple(part[None] for part in pair)), "(int64 of shape (1, 8), int64 of shape"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_forms_are_refused_in_one_line_that_says_what_is_expected(kind: str) -> None:
    dataset, message = REFUSED[kind]
    with pytest.raises(UserError, match=re.escape(f"the examples of Form are {message}")) as caught:
        BatchLoader(dataset, 4, shuffle_seed=0).batches(0)
    assert "Expected of dataset[index]: (inputs, targets), two tensors of T token ids each" in caught.value.fix


@pytest.mark.parametrize("dataset", [None, iter([1]), 3], ids=["nothing", "iterable", "number"])
def test_what_is_no_dataset_is_refused(dataset: Any) -> None:
    with pytest.raises(UserError, match="is no dataset"):
        as_sequences(dataset)


def test_a_mistake_in_a_dataset_is_shown_with_its_own_error() -> None:
    def fails(*_: Any) -> None:
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        as_sequences(Form(fails))


class Torchs(SequenceDataModule):
    """The first windows for training and validation, one by one; nothing for the test."""

    def __init__(self, block_size: int = 8):
        super().__init__(16)
        self.tokenizer, self.block_size = CharTokenizer("abcdefghijk"), block_size

    def dataset(self, split: Split) -> Any:
        return [] if split == "test" else Examples(length=64)


def test_training_takes_examples(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    class Whole(Torchs):
        def dataset(self, split: Split) -> Any:
            return [] if split == "test" else TensorDataset(*WINDOWS[torch.arange(64)])

    losses = []
    for data in (Torchs(), Whole()):
        system, trainer = LanguageModel(make_gpt()), make_trainer(max_epochs=2, limit_val_batches=1)
        trainer.fit(system, datamodule=data)
        assert trainer.global_step == 2 * 4
        losses.append(trainer.validate(system, datamodule=data, verbose=False)[0]["val/loss"])
    assert losses[0] == losses[1]
    assert Torchs().fingerprint == Torchs().fingerprint
    with pytest.raises(UserError, match=r"the sequences of Examples have 8 tokens, more than block_size=7"):
        Torchs(block_size=7).sequences("train")
