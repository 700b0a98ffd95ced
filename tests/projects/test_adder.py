"""The adder: its encoding, and splits that share no problem."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning import Tokenizer, UserError
from mingpt_lightning.datamodule import IGNORE, Split
from projects.adder.datamodule import AdderDataModule, AdderDataset, AdderTokenizer

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def problems(dataset: AdderDataset, indices: list[int]) -> list[tuple[int, int]]:
    """The two numbers of each of some problems."""
    n = dataset.ndigit
    inputs, _ = dataset[torch.tensor(indices, dtype=torch.int64)]
    digits = ["".join(map(str, row)) for row in inputs.tolist()]
    return [(int(text[:n]), int(text[n : 2 * n])) for text in digits]


def sequence(ndigit: int, problem: tuple[int, int]) -> tuple[str, list[int]]:
    """The whole sequence of a problem, wherever it is, as text; and its targets."""
    for split in SPLITS:
        dataset = AdderDataset(ndigit, split)
        found = problems(dataset, list(range(len(dataset))))
        if problem in found:
            inputs, targets = dataset[torch.tensor([found.index(problem)])]
            return "".join(map(str, [*inputs[0].tolist(), targets[0, -1].item()])), targets[0].tolist()
    raise AssertionError(f"{problem} is in no split")


@pytest.mark.parametrize(("ndigit", "sizes"), [(1, (70, 10, 20)), (2, (9000, 500, 500)), (3, (999_000, 500, 500))])
def test_splits_have_their_sizes(ndigit: int, sizes: tuple[int, int, int]) -> None:
    datamodule = AdderDataModule(ndigit)
    assert tuple(len(datamodule.dataset(split)) for split in SPLITS) == sizes


@pytest.mark.parametrize("ndigit", [1, 2])
def test_every_problem_is_in_one_split_once(ndigit: int) -> None:
    datasets = [AdderDataset(ndigit, split) for split in SPLITS]
    found = [problem for dataset in datasets for problem in problems(dataset, list(range(len(dataset))))]
    assert sorted(found) == [(a, b) for a in range(10**ndigit) for b in range(10**ndigit)]


def test_splits_are_drawn_from_everywhere() -> None:
    numbers = torch.tensor(problems(AdderDataset(2, "test"), list(range(500)))).double()
    assert (numbers.mean(dim=0) - 49.5).abs().max() < 5  # 4 standard deviations of chance
    assert (numbers.std(dim=0) - 28.9).abs().max() < 4


places = st.lists(st.integers(1000, 2**62 - 1), min_size=1, max_size=50, unique=True)


@given(numbers=places)
def test_splits_of_a_trillion_trillion_problems_share_none(numbers: list[int]) -> None:
    train = AdderDataset(12, "train")
    trained = problems(train, [place % len(train) for place in numbers])
    held_out = [problem for split in ("val", "test") for problem in problems(AdderDataset(12, split), list(range(500)))]
    assert len(set(held_out)) == 1000
    assert not set(trained) & set(held_out)
    assert len(set(trained)) == len({place % len(train) for place in numbers})


def test_splits_take_different_places_of_one_order() -> None:
    test, val, train = (AdderDataset(12, split).places for split in ("test", "val", "train"))
    assert test.start == 0
    assert test.stop == val.start
    assert val.stop == train.start


def test_the_held_out_problems_never_change() -> None:
    inputs, _ = AdderDataset(2, "test")[torch.arange(500)]
    digest = hashlib.sha256(inputs.numpy().astype("uint8").tobytes()).hexdigest()
    assert digest[:16] == "8c29fdcf0fb9a48a"  # else old results can't be compared with new ones


@pytest.mark.parametrize(
    ("ndigit", "problem", "text"),
    [(2, (85, 50), "8550531"), (2, (6, 39), "0639540"), (2, (99, 99), "9999891"), (1, (3, 4), "3470")],
)
def test_a_problem_is_written_with_its_sum_reversed(ndigit: int, problem: tuple[int, int], text: str) -> None:
    assert sequence(ndigit, problem)[0] == text


def test_only_the_sum_takes_loss() -> None:
    assert sequence(2, (85, 50))[1] == [IGNORE, IGNORE, IGNORE, 5, 3, 1]
    assert sequence(1, (3, 4))[1] == [IGNORE, 7, 0]


@given(ndigit=st.integers(1, 18), split=st.sampled_from(SPLITS), place=st.integers(0, 2**62))
def test_the_answer_is_the_sum(ndigit: int, split: Split, place: int) -> None:
    dataset = AdderDataset(ndigit, split)
    inputs, targets = dataset[torch.tensor([place % len(dataset)])]
    assert inputs.shape == targets.shape == (1, 3 * ndigit)
    assert inputs.dtype == targets.dtype == torch.int64
    a, b = problems(dataset, [place % len(dataset)])[0]
    answer = targets[0, 2 * ndigit - 1 :].tolist()
    assert int("".join(map(str, reversed(answer)))) == a + b  # Python's integers don't overflow
    assert (targets[0, : 2 * ndigit - 1] == IGNORE).all()
    assert inputs[0, 2 * ndigit :].tolist() == answer[:-1]  # targets are one ahead


def test_what_the_model_needs_is_known_at_once() -> None:
    datamodule = AdderDataModule(ndigit=4)
    assert (datamodule.vocab_size, datamodule.block_size, datamodule.tokenizer.answer_length) == (10, 12, 5)


@pytest.mark.parametrize("ndigit", [0, 19, -1])
def test_too_many_or_too_few_digits_are_refused(ndigit: int) -> None:
    with pytest.raises(UserError, match=f"ndigit={ndigit} .*1 to 18"):
        AdderDataModule(ndigit)


@given(ndigit=st.integers(1, 18), data=st.data())
def test_the_tokenizer_inverts_itself(ndigit: int, data: st.DataObject) -> None:
    tokenizer = AdderTokenizer(ndigit)
    a, b = (data.draw(st.integers(0, 10**ndigit - 1)) for _ in range(2))
    assert tokenizer.decode(tokenizer.encode(f"{a}+{b}")) == f"{a}+{b}="
    answer = [int(digit) for digit in str(a + b).zfill(ndigit + 1)[::-1]]
    assert tokenizer.decode(tokenizer.encode(f"{a}+{b}") + answer) == f"{a}+{b}={a + b}"


def test_the_tokenizer_writes_what_the_dataset_holds() -> None:
    inputs, targets = AdderDataset(3, "val")[torch.arange(5)]
    tokenizer = AdderTokenizer(3)
    for row in torch.cat([inputs, targets[:, -1:]], dim=1).tolist():
        text = tokenizer.decode(row)
        problem, answer = text.split("=")
        assert sum(map(int, problem.split("+"))) == int(answer)
        assert tokenizer.encode(problem) == row[:6]


@pytest.mark.parametrize("text", ["6+39", "06+39", " 6 + 39 ", "6+39="])
def test_a_sum_may_be_written_in_several_ways(text: str) -> None:
    assert AdderTokenizer(2).encode(text) == [0, 6, 3, 9]


@pytest.mark.parametrize("text", ["", "85", "85+", "85+500", "1+2+3", "-1+2", "a+b", "8 5+50", "٣+٤", "85+50=135"])
def test_what_is_no_sum_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"at most 2 digits .*85\+50") as caught:
        AdderTokenizer(2).encode(text)
    assert repr(text) in str(caught.value)


def test_the_tokenizer_survives_a_checkpoint() -> None:
    again = Tokenizer.from_state(AdderTokenizer(3).state())
    assert isinstance(again, AdderTokenizer)
    assert again.encode("85+50") == [0, 8, 5, 0, 5, 0]
    assert again.answer_length == 4
