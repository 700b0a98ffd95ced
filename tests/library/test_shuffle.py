"""Orders that are computed instead of stored: each index once, whatever the size."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning.shuffle import mix, permute, shuffle_digits, to_digits

keys = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 5000), key=keys)
def test_permute_takes_every_index_once(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, np.uint64(key)).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257])
def test_permute_takes_every_index_once_around_squares(size: int) -> None:
    assert sorted(permute(np.arange(size), size, 1).tolist()) == list(range(size))


@given(size=st.integers(1000, 2**62), key=keys, data=st.data())
def test_permute_keeps_indices_of_huge_sets_apart(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, min_size=2, max_size=50))
    places = permute(np.array([*indices, 0, size - 1]), size, np.uint64(key))
    assert 0 <= places.min() <= places.max() < size
    assert len(set(places.tolist())) == len({*indices, 0, size - 1})


def test_permute_does_not_depend_on_what_else_is_asked() -> None:
    whole = permute(np.arange(1000), 1000, 7)
    assert [permute(np.array([i]), 1000, 7).item() for i in range(0, 1000, 111)] == whole[::111].tolist()


def test_permute_takes_a_key_for_each_index() -> None:
    several = permute(np.tile(np.arange(100), 3), 100, np.repeat([5, 6, 7], 100))
    for part, key in zip(np.split(several, 3), [5, 6, 7], strict=True):
        np.testing.assert_array_equal(part, permute(np.arange(100), 100, key))


def test_permute_looks_random() -> None:
    orders = np.stack([permute(np.arange(1000), 1000, key) for key in range(20)])
    together = np.corrcoef(np.vstack([np.arange(1000), orders]))  # of the orders with one another and with no shuffle
    assert np.abs(together - np.eye(21)).max() < 0.15  # 4.7 standard deviations of chance
    followers = np.mean(np.diff(orders, axis=1) == 1)
    assert followers < 0.005  # 0.001 by chance, 1 without a shuffle


@given(base=st.integers(1, 12), length=st.integers(1, 7), key=keys)
def test_shuffle_digits_moves_no_two_sequences_to_the_same(base: int, length: int, key: int) -> None:
    length = next(n for n in range(length, 0, -1) if base**n <= 5000)
    digits = np.array(list(product(range(base), repeat=length)), dtype=np.int64)
    before = digits.copy()
    shuffled = shuffle_digits(digits, base, np.uint64(key))
    assert 0 <= shuffled.min() <= shuffled.max() < base
    assert {tuple(row) for row in shuffled.tolist()} == {tuple(row) for row in before.tolist()}
    np.testing.assert_array_equal(digits, before)  # the argument is left alone


def test_shuffle_digits_takes_the_largest_base() -> None:
    base = 2**62
    digits = np.array([[0, 0], [0, base - 1], [base - 1, 0], [base - 1, base - 1]])
    shuffled = shuffle_digits(digits, base, 3)
    assert 0 <= shuffled.min() <= shuffled.max() < base
    assert len({tuple(row) for row in shuffled.tolist()}) == 4


def test_keys_give_different_orders() -> None:
    assert len({tuple(permute(np.arange(50), 50, key)) for key in range(20)}) == 20


def test_mix_is_splitmix64() -> None:
    # The first two numbers of the published generator from state 0, whose second state is the golden ratio.
    assert int(mix(0, key=0)) == 0xE220A8397B1DCDAF
    assert int(mix(np.uint64(0x9E3779B97F4A7C15), key=0)) == 0x6E789E6AA1B965F4


@given(values=st.lists(keys, unique=True, min_size=2), key=keys)
def test_mix_keeps_values_apart(values: list[int], key: int) -> None:
    hashes = mix(np.array(values, dtype=np.uint64), np.uint64(key))
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == len(values)


@given(numbers=st.lists(st.integers(0, 2**62), max_size=20), base=st.integers(2, 20), length=st.integers(0, 8))
def test_to_digits_writes_numbers(numbers: list[int], base: int, length: int) -> None:
    digits = to_digits(np.array(numbers, dtype=np.int64), base, length)
    assert digits.shape == (len(numbers), length)
    values = [sum(digit * base**place for place, digit in enumerate(reversed(row))) for row in digits.tolist()]
    assert values == [number % base**length for number in numbers]  # what doesn't fit is cut off


def test_to_digits_leaves_its_argument_alone() -> None:
    numbers = np.array([12, 345])
    assert to_digits(numbers, 10, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert numbers.tolist() == [12, 345]
