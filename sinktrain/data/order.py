"""Shuffling without a list: the place of one element in a permutation of any size, in constant time and memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 4 rounds are pseudorandom on large domains (Luby and Rackoff, 1988); with 16, all 720 orders of 6 come equally often.
_ROUNDS = 16
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def draw(*parts: ArrayLike) -> NDArray[np.uint64]:
    """A key from non-negative integers, such as a seed and an epoch; other integers give an unrelated key.

    Args:
        parts: integers or arrays of them, of shapes that broadcast.

    Returns:
        The keys, of the broadcast shape, at least (1,).
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = _mix(key ^ np.asarray(part).astype(np.uint64))
    return key


def permuted(place: ArrayLike, size: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """What stands at `place` in the permutation of range(size) that `key` draws.

    A Feistel network over a grid of about the square root of `size` on each side; what falls on the grid's few surplus
    fields goes through again until it is inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002:
    generalized Feistel and cycle walking). Nothing is stored, so any place of any epoch costs the same.

    Args:
        place: integers, 0 <= place < size.
        size: of the permutation, at most 2^53.
        key: from `draw`. The three broadcast.

    Returns:
        Integers of the broadcast shape, at least (1,).

    Raises:
        ValueError: a place is outside its permutation.
    """
    x, n, keys = np.broadcast_arrays(
        np.atleast_1d(place).astype(np.int64), np.atleast_1d(size).astype(np.int64), np.atleast_1d(key)
    )
    if ((x < 0) | (x >= n)).any():
        raise ValueError("a place outside the permutation")
    x, n = x.astype(np.uint64), n.astype(np.uint64)
    width = np.ceil(np.sqrt(n)).astype(np.uint64)
    height = (n + width - np.uint64(1)) // width
    x = _feistel(x, width, height, keys)
    while (outside := x >= n).any():
        x[outside] = _feistel(x[outside], width[outside], height[outside], keys[outside])
    return x.astype(np.int64)


def _feistel(
    x: NDArray[np.uint64], width: NDArray[np.uint64], height: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of range(width * height): each round shifts one coordinate by a random function of the other."""
    column, row = x % width, x // width
    for number in range(0, _ROUNDS, 2):
        column = (column + _mix(row ^ _mix(key + np.uint64(number))) % width) % width
        row = (row + _mix(column ^ _mix(key + np.uint64(number + 1))) % height) % height
    return row * width + column


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection in which every bit depends on every."""
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
