"""Shuffling without storage: keyed permutations of numbers and of digit sequences.

A shuffled list of a trillion problems fits in no memory; a function that says which problem is at index i needs none.
Everything here is a pure function of its arguments, the same in every process.
"""

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def mix(values: np.ndarray | int, key: int | np.ndarray) -> np.ndarray:
    """A 64-bit hash of each value under a key (one for all, or one each): uint64.

    Source: splitmix64, Steele et al. 2014, "Fast splittable pseudorandom number generators".
    """
    with np.errstate(over="ignore"):
        z = (np.asarray(values).astype(np.uint64) ^ np.asarray(key).astype(np.uint64) * _GOLDEN) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def to_digits(numbers: np.ndarray, base: int, length: int) -> np.ndarray:
    """Numbers as digits in a base, the highest first: (B,) -> (B, length) int64. What doesn't fit is cut off."""
    digits = np.empty((len(numbers), length), dtype=np.int64)
    for column in reversed(range(length)):
        numbers, digits[:, column] = np.divmod(numbers, base)
    return digits


def shuffle_digits(digits: np.ndarray, base: int, key: int | np.ndarray) -> np.ndarray:
    """Move each sequence of digits to another one, no two to the same: a keyed permutation of all of them.

    digits: (B, L) int64 in [0, base), base at most 2**62. Returns the same shape. One half of the digits is shifted
    by a hash of the other half, and the other way round, a few times; each such round can be undone, so no two
    sequences can meet. Source: unbalanced Feistel networks; Black & Rogaway 2002, "Ciphers with arbitrary finite
    domains", section 5.
    """
    digits = digits.copy()
    half = (digits.shape[1] + 1) // 2
    sides = digits[:, :half], digits[:, half:]  # views: a change to one is a change to `digits`
    for number in range(_ROUNDS):
        changed, read = sides[number % 2], sides[1 - number % 2]
        state = mix(np.full(len(digits), number), key)
        for column in read.T:
            state = mix(column, state)
        for place, column in enumerate(changed.T):
            column += (mix(place, state) % np.uint64(base)).astype(np.int64)
            column %= base
    return digits


def permute(indices: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, size), applied to some indices: O(1) memory whatever the size (at most 2**62).

    An index is written as two digits in a base whose square is just above `size`; what the shuffle moves outside of
    [0, size) is moved again until it lands inside ("cycle walking", Black & Rogaway 2002, section 3).
    """
    base = math.isqrt(size - 1) + 1
    keys = np.broadcast_to(np.asarray(key), indices.shape)
    result = indices.astype(np.int64)
    outside = np.ones(indices.shape, dtype=bool)
    while outside.any():
        digits = shuffle_digits(to_digits(result[outside], base, 2), base, keys[outside])
        result[outside] = digits[:, 0] * base + digits[:, 1]
        outside = result >= size
    return result
