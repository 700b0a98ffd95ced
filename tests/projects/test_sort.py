"""The sort task: the right answers, more practice with repeats, and splits that share no sequence."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mingpt_lightning import Tokenizer, UserError
from mingpt_lightning.datamodule import IGNORE, Split
from projects.sort.datamodule import SortDataModule, SortDataset, SortTokenizer

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def unsorted(dataset: SortDataset, indices: Tensor | None = None) -> list[tuple[int, ...]]:
    """The sequences to be sorted, of all indices by default."""
    inputs, _ = dataset[torch.arange(len(dataset)) if indices is None else indices]
    return list(map(tuple, inputs[:, : dataset.length].tolist()))


def mean_different(sequences: list[tuple[int, ...]]) -> float:
    """How many different digits a sequence has, on average."""
    return sum(len(set(sequence)) for sequence in sequences) / len(sequences)


def test_every_sequence_is_in_one_split() -> None:
    train, val, test = (unsorted(SortDataset(6, 3, split)) for split in SPLITS)
    assert (len(train), len(val), len(test)) == (2 * 475, 72, 182)
    plain, extra = train[:475], train[475:]
    assert len(set(plain + val + test)) == 475 + 72 + 182 == 3**6
    assert set(extra) <= set(plain)  # the extra practice is no look at the others


@given(length=st.integers(1, 12), num_digits=st.integers(2, 12), data=st.data())
def test_splits_of_any_size_share_none(length: int, num_digits: int, data: st.DataObject) -> None:
    if num_digits**length < 10:
        length = 4
    train, val, test = (SortDataset(length, num_digits, split) for split in SPLITS)
    places = data.draw(st.lists(st.integers(0, len(train) - 1), min_size=1, max_size=50))
    trained = set(unsorted(train, torch.tensor(places)))
    held_out = unsorted(val) + unsorted(test)
    assert len(set(held_out)) == len(held_out)
    assert not trained & set(held_out)


def test_splits_hold_at_most_5000() -> None:
    train, val, test = (SortDataset(12, 10, split) for split in SPLITS)
    assert (len(val), len(test)) == (5000, 5000)
    assert len(train) == 2 * (10**12 - 10_000)


def test_the_held_out_sequences_never_change() -> None:
    inputs, _ = SortDataset(6, 3, "test")[torch.arange(182)]
    digest = hashlib.sha256(inputs.numpy().astype("uint8").tobytes()).hexdigest()
    assert digest[:16] == "1d464b8f3b4f2746"  # whatever the process: minGPT's split was another one in each


@given(length=st.integers(2, 10), num_digits=st.integers(4, 20), split=st.sampled_from(SPLITS), data=st.data())
def test_the_answer_is_the_sorted_input(length: int, num_digits: int, split: Split, data: st.DataObject) -> None:
    dataset = SortDataset(length, num_digits, split)
    index = data.draw(st.integers(0, len(dataset) - 1))
    inputs, targets = dataset[torch.tensor([index])]
    assert inputs.shape == targets.shape == (1, 2 * length - 1)
    assert inputs.dtype == targets.dtype == torch.int64
    assert targets[0, length - 1 :].tolist() == sorted(inputs[0, :length].tolist())
    assert (targets[0, : length - 1] == IGNORE).all()
    assert inputs[0, length:].tolist() == targets[0, length - 1 : -1].tolist()  # targets are one ahead


@pytest.mark.parametrize(("length", "num_digits", "margin"), [(6, 3, 0.3), (6, 10, 0.6), (12, 10, 0.6)])
def test_the_extra_half_of_training_has_more_repeats(length: int, num_digits: int, margin: float) -> None:
    dataset = SortDataset(length, num_digits, "train")
    half = len(dataset) // 2
    sample = torch.arange(0, half, max(1, half // 2000))
    plain, extra = unsorted(dataset, sample), unsorted(dataset, half + sample)
    assert mean_different(extra) < mean_different(plain) - margin
    assert len(set(extra)) > len(extra) / 5  # and they are not always the same ones


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_has_no_extra_half(split: Split) -> None:
    sequences = unsorted(SortDataset(6, 3, split))
    assert len(set(sequences)) == len(sequences)


def test_a_batch_of_both_halves_is_its_rows_together() -> None:
    dataset = SortDataset(6, 3, "train")
    indices = torch.tensor([3, 800, 474, 475, 949, 3])
    alone = [unsorted(dataset, index[None])[0] for index in indices]
    assert unsorted(dataset, indices) == alone


def test_what_the_model_needs_is_known_at_once() -> None:
    datamodule = SortDataModule(length=7, num_digits=5)
    assert (datamodule.vocab_size, datamodule.block_size, datamodule.tokenizer.answer_length) == (5, 13, 7)


@pytest.mark.parametrize(("length", "num_digits"), [(1, 9), (3, 2), (9, 1)])
def test_too_few_sequences_are_refused(length: int, num_digits: int) -> None:
    with pytest.raises(UserError, match=f"only {num_digits**length} sequences of length={length} .*={num_digits}"):
        SortDataModule(length, num_digits)


@pytest.mark.parametrize(("length", "num_digits"), [(0, 3), (6, 0), (-1, 3)])
def test_sizes_below_one_are_refused(length: int, num_digits: int) -> None:
    with pytest.raises(UserError, match="not a positive integer"):
        SortDataModule(length, num_digits)


@given(num_digits=st.integers(2, 30), digits=st.lists(st.integers(0, 1), min_size=2, max_size=12), data=st.data())
def test_the_tokenizer_inverts_itself(num_digits: int, digits: list[int], data: st.DataObject) -> None:
    length = len(digits)
    digits = data.draw(st.lists(st.integers(0, num_digits - 1), min_size=length, max_size=length))
    tokenizer = SortTokenizer(length, num_digits)
    assert tokenizer.encode(" ".join(map(str, digits))) == digits
    text = tokenizer.decode(digits + sorted(digits))
    given_part, answer = text.split(" -> ")
    assert tokenizer.encode(given_part) == digits
    assert tokenizer.encode(answer) == sorted(digits)


@pytest.mark.parametrize("text", ["002101", "0 0 2 1 0 1", " 0,0,2,1,0,1 ", "0, 0, 2, 1, 0, 1"])
def test_digits_may_be_written_in_several_ways(text: str) -> None:
    assert SortTokenizer(6, 3).encode(text) == [0, 0, 2, 1, 0, 1]


@pytest.mark.parametrize(
    "text",
    ["", "00210", "0021010", "003101", "00210a", "0 0 2 1 0 3", "0 0 2 1 0", "0 0 2 1 0 -1", "0 0 2 1 0 x1", "٠٠٢١٠١"],
)
def test_what_is_not_six_digits_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"is not 6 digits from 0 to 2 .*prompt=") as caught:
        SortTokenizer(6, 3).encode(text)
    assert repr(text) in str(caught.value)
    example = str(caught.value).split('"')[1]
    assert len(SortTokenizer(6, 3).encode(example)) == 6


def test_the_tokenizer_survives_a_checkpoint() -> None:
    again = Tokenizer.from_state(SortTokenizer(4, 12).state())
    assert isinstance(again, SortTokenizer)
    assert again.encode("11 0 3 3") == [11, 0, 3, 3]
    assert again.vocab_size == 12
