"""The loader: which sequence comes when, in how many batches, at what cost."""

import hashlib
import os
import pickle
import tracemalloc
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mingpt_lightning import CharTokenizer, SequenceDataModule, UserError
from mingpt_lightning.datamodule import IGNORE, Batch, BatchLoader, Split, WindowDataset
from projects.adder.datamodule import AdderDataModule
from projects.chargpt.datamodule import CharDataModule
from projects.sort.datamodule import SortDataModule
from tests.common import python


class Numbers:
    """Sequence i is the number i, and its target i + 1."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: Tensor) -> Batch:
        return indices[:, None], indices[:, None] + 1


class NumbersDataModule(SequenceDataModule):
    """40 numbers for training, 10 for validation, 3 for the test."""

    def __init__(self, batch_size: int, seed: int = 0):
        super().__init__(batch_size, seed)
        self.tokenizer = CharTokenizer("abc")
        self.block_size = 1

    def dataset(self, split: Split) -> Numbers:
        return Numbers({"train": 40, "val": 10, "test": 3}[split])


def numbers(batches: Iterable[Batch]) -> list[list[int]]:
    """Which numbers came, batch by batch."""
    return [inputs[:, 0].tolist() for inputs, _ in batches]


def flat(batches: Iterable[list[int]]) -> list[int]:
    """The numbers of all batches in one list."""
    return list(chain.from_iterable(batches))


sizes, seeds = st.integers(1, 200), st.integers(0, 2**32 - 1)


@given(size=sizes, batch_size=sizes)
def test_in_order_every_index_comes_once(size: int, batch_size: int) -> None:
    loader = BatchLoader(Numbers(size), batch_size)
    batches = numbers(loader)
    assert flat(batches) == list(range(size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == len(loader)
    assert numbers(loader) == batches  # and again


def test_in_order_the_last_batch_may_be_short() -> None:
    assert numbers(BatchLoader(Numbers(5), 2)) == [[0, 1], [2, 3], [4]]


def test_inputs_and_targets_stay_together() -> None:
    for inputs, targets in BatchLoader(Numbers(50), 7, shuffle_seed=0):
        assert torch.equal(targets, inputs + 1)
        assert inputs.dtype == targets.dtype == torch.int64


@given(size=sizes, batch_size=sizes, seed=seeds)
def test_shuffled_every_index_comes_once_an_epoch(size: int, batch_size: int, seed: int) -> None:
    loader = BatchLoader(Numbers(size), batch_size, shuffle_seed=seed)
    epochs = loader.indices(step=0, steps=size).reshape(batch_size, size)  # so many steps are batch_size whole epochs
    for epoch in epochs[:10].tolist():
        assert sorted(epoch) == list(range(size))


@given(size=sizes, batch_size=sizes, seed=seeds, step=st.integers(0, 10**6))
def test_a_step_is_the_same_however_it_is_reached(size: int, batch_size: int, seed: int, step: int) -> None:
    loader = BatchLoader(Numbers(size), batch_size, shuffle_seed=seed)
    three = loader.indices(step, steps=3)
    loader.indices(step + 5)  # asking for another step changes nothing
    alone = [BatchLoader(Numbers(size), batch_size, shuffle_seed=seed).indices(step + i) for i in range(3)]
    assert three.tolist() == flat(indices.tolist() for indices in alone)


def test_iterating_is_counting_steps() -> None:
    loader = BatchLoader(Numbers(50), 7, shuffle_seed=3)
    batches = numbers(loader) + numbers(loader)  # two epochs of 7 whole batches
    assert len(loader) == 7
    assert batches == [loader.indices(step).tolist() for step in range(14)]


def test_an_interrupted_epoch_goes_on_where_it_ended() -> None:
    loader = BatchLoader(Numbers(50), 7, shuffle_seed=3)
    for _, _batch in zip(range(3), loader, strict=False):
        pass
    assert loader.step == 3
    assert numbers(loader) == [loader.indices(step).tolist() for step in range(3, 10)]


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {
        tuple(BatchLoader(Numbers(50), 50, shuffle_seed=seed).indices(epoch)) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_a_batch_may_be_larger_than_the_data() -> None:
    loader = BatchLoader(Numbers(3), 10, shuffle_seed=0)
    (batch,) = numbers(loader)
    assert len(batch) == 10
    assert sorted(batch[:9]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_no_data_is_refused() -> None:
    with pytest.raises(UserError, match="no sequence"):
        BatchLoader(Numbers(0), 4)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_a_bad_batch_size_is_refused(batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch_size={batch_size} "):
        NumbersDataModule(batch_size)


def test_a_datamodule_shuffles_training_only() -> None:
    datamodule = NumbersDataModule(batch_size=8, seed=1)
    train = flat(numbers(datamodule.train_dataloader()))
    assert sorted(train) == list(range(40))
    assert train != list(range(40))
    assert flat(numbers(datamodule.val_dataloader())) == list(range(10))
    assert flat(numbers(datamodule.test_dataloader())) == list(range(3))


def test_a_datamodule_orders_training_by_its_seed() -> None:
    loaders = [NumbersDataModule(8, seed).train_dataloader() for seed in (0, 0, 1)]
    first, again, other = map(numbers, loaders)
    assert first == again != other


def test_a_trillion_trillion_problems_cost_nothing() -> None:
    tracemalloc.start()
    datamodule = AdderDataModule(ndigit=12, batch_size=64)  # 10**24 problems
    loader = datamodule.train_dataloader()
    inputs, targets = next(iter(loader))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loader) > 2**55
    assert inputs.shape == targets.shape == (64, 36)
    assert len(pickle.dumps(loader)) < 1000  # what is kept
    assert len(pickle.dumps(datamodule)) < 3000
    assert peak < 20e6  # what is ever used: a few thousand sequences


def digests() -> list[str]:
    """A fingerprint of the first batch of every split of every project."""
    result = []
    for datamodule in (AdderDataModule(seed=5), SortDataModule(seed=5), CharDataModule(seed=5)):
        for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
            content = b"".join(tensor.numpy().tobytes() for tensor in loader.batches(step=0))
            result.append(hashlib.sha256(content).hexdigest())
    return result


@pytest.mark.slow
def test_batches_are_the_same_in_a_fresh_process() -> None:
    code = f"import runpy; print(*runpy.run_path({__file__!r})['digests']())"
    fresh = python(code, env={**os.environ, "PYTHONHASHSEED": "12345"})
    assert fresh.stdout.split() == digests()
    assert len(set(digests())) == 9


def test_processes_share_each_batch_whatever_their_number():
    data = WindowDataset(torch.arange(1000).numpy(), block_size=4, stride=1)
    one = BatchLoader(data, 12, shuffle_seed=5)
    for ranks in (2, 3, 4):
        several = [BatchLoader(data, 12 // ranks, shuffle_seed=5, rank=rank, world_size=ranks) for rank in range(ranks)]
        assert {len(loader) for loader in several} == {len(one)}
        for step in (0, 7, 200):
            parts = torch.cat([loader.batches(step)[0] for loader in several])
            assert torch.equal(parts, one.batches(step)[0])
        for loader in several:
            loader.load_state_dict({"sequences": 12 * 30})
        rest = [next(iter(loader))[0] for loader in several]
        assert torch.equal(torch.cat(rest), one.batches(30)[0])
    with pytest.raises(UserError, match="360 sequences, no whole number of batches of 50"):
        BatchLoader(data, 25, shuffle_seed=5, world_size=2).load_state_dict({"sequences": 360})


def test_every_process_reads_as_many_batches_in_order():
    data = WindowDataset(torch.arange(100).numpy(), block_size=4, stride=4)  # 25 windows
    several = [list(BatchLoader(data, 5, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(batches) for batches in several] == [3, 3]
    read = torch.cat([inputs for batches in several for inputs, _ in batches])
    assert sorted(read[:, 0].tolist()) == [*range(0, 96, 4), 95]
    loader = BatchLoader(data, 5)
    loader.load_state_dict({"sequences": 15})
    assert len(list(loader)) == 2, "the rest of an epoch"
    assert len(list(loader)) == 5, "and then whole ones"


# Fingerprints


class Held(NumbersDataModule):
    """Numbers that its datasets hold: 3,000 a split, and a name that says where they are from."""

    def __init__(self, numbers: Any, path: str = ""):
        super().__init__(8)
        self.numbers, self.path = numbers, path

    def dataset(self, split: Split) -> Any:
        dataset = Numbers(3000)
        dataset.held, dataset.path = self.numbers, self.path
        return dataset


def test_a_fingerprint_is_of_all_that_is_held_and_not_of_where_it_is() -> None:
    tokens = np.arange(3000)
    for make in (
        lambda tokens: tokens,
        lambda tokens: tokens.astype(np.uint16)[::-1],
        torch.from_numpy,
        lambda tokens: torch.from_numpy(tokens).float().bfloat16(),
        np.ndarray.tolist,
        lambda tokens: {"documents": [tokens[:99].tolist(), tokens[99:].tolist()]},
        lambda tokens: torch.utils.data.Subset(torch.utils.data.TensorDataset(torch.from_numpy(tokens)), [1]),
    ):
        other = tokens.copy()
        other[99] = 0
        fingerprints = [Held(make(tokens), path).fingerprint for path in ("here", "there")]
        assert len({*fingerprints}) == 1
        assert Held(make(other)).fingerprint != fingerprints[0]
        assert fingerprints[0].startswith(Held(None).fingerprint), "as earlier versions had it"


def test_a_huge_array_is_hashed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mingpt_lightning.dataset.WHOLE", 4096)
    monkeypatch.setattr("mingpt_lightning.dataset.PIECE", 256)
    tokens = np.arange(3000)
    before, ends = Held(tokens).fingerprint, []
    for place in (0, 2999):
        other = tokens.copy()
        other[place] += 1
        ends.append(Held(other).fingerprint)
    assert len({before, *ends}) == 3


# Windows


@given(length=st.integers(2, 300), block_size=st.integers(1, 20), batch_size=st.integers(1, 20))
def test_an_epoch_of_windows_covers_the_text_once(length: int, block_size: int, batch_size: int) -> None:
    tokens = np.arange(max(length, block_size + 1))
    at_random, in_order = (WindowDataset(tokens, block_size, stride) for stride in (1, block_size))
    assert at_random.epoch_size == in_order.epoch_size == len(in_order)
    loader = BatchLoader(at_random, batch_size, shuffle_seed=0)
    assert len(loader) == max(1, len(in_order) // batch_size)
    first, second = flat(numbers(loader)), flat(numbers(loader))
    assert len(first) == len(second) == len(loader) * batch_size
    if len(first + second) <= len(at_random):
        assert len({*first, *second}) == len(first + second), "the next epoch draws other windows"
    assert len(BatchLoader(at_random, 1)) == len(at_random), "in order, each of them once"


@given(length=st.integers(2, 200), block_size=st.integers(1, 20))
def test_evaluation_scores_every_token_once(length: int, block_size: int) -> None:
    length = max(length, block_size + 1)
    dataset = WindowDataset(np.arange(length), block_size, stride=block_size)
    inputs, targets = dataset[torch.arange(len(dataset))]
    assert inputs.shape == targets.shape == (len(dataset), block_size)
    assert targets[targets != IGNORE].tolist() == list(range(1, length))  # nothing comes before the first one
    assert torch.equal(inputs[targets != IGNORE] + 1, targets[targets != IGNORE])


@given(length=st.integers(2, 200), block_size=st.integers(1, 20))
def test_training_has_every_window(length: int, block_size: int) -> None:
    length = max(length, block_size + 1)
    dataset = WindowDataset(np.arange(length), block_size, stride=1)
    inputs, targets = dataset[torch.arange(len(dataset))]
    assert inputs[:, 0].tolist() == list(range(length - block_size))
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(block_size))
