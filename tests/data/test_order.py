"""The permutation without a list, and the mixture of sources made of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinktrain.data.mixture import BLOCK, Mixture, thousandths
from sinktrain.data.order import draw, permuted

GOLDEN = [
    [3, 9, 2, 1, 7, 4, 5, 8, 0, 6],
    [2, 9, 4, 0, 5, 8, 7, 1, 6, 3],
    [3, 9, 5, 7, 8, 6, 2, 4, 0, 1],
    [560776580754, 838858197597, 660395461172],
]
GOLDEN_MIXTURE = [[0, 1, 0, 1, 0, 0, 0, 1], [4, 2, 4, 6, 3, 1, 0, 1]]


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 10**9))
def test_every_place_of_a_permutation_is_another(size: int, seed: int, epoch: int) -> None:
    found = permuted(np.arange(size), size, draw(seed, epoch))
    assert found.dtype == np.int64 and sorted(found.tolist()) == list(range(size))


@given(st.integers(2**20, 2**53), st.integers(0, 100), st.data())
def test_large_permutations_stay_inside_and_tell_places_apart(size: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=20, unique=True))
    found = permuted(places, size, draw(seed))
    assert len(set(found.tolist())) == len(places) and found.min() >= 0 and found.max() < size


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=9))
def test_many_permutations_at_once_are_those_one_by_one(several: list[tuple[int, int]]) -> None:
    sizes, epochs = map(np.array, zip(*several, strict=True))
    together = permuted(sizes - 1, sizes, draw(3, epochs))
    alone = [int(permuted(size - 1, size, draw(3, epoch))[0]) for size, epoch in several]
    assert together.tolist() == alone


def test_golden_order() -> None:
    """A changed order would silently change every run that is resumed."""
    assert permuted(np.arange(10), 10, draw(0, 0)).tolist() == GOLDEN[0]
    assert permuted(np.arange(10), 10, draw(0, 1)).tolist() == GOLDEN[1]
    assert permuted(np.arange(10), 10, draw(1, 0)).tolist() == GOLDEN[2]
    assert permuted([0, 1, 2**40], 2**40 + 1, draw(7, 3, 5)).tolist() == GOLDEN[3]


@pytest.mark.parametrize(("size", "orders"), [(3, 6), (4, 24), (5, 120), (6, 720)])
def test_all_orders_of_a_few_come_equally_often(size: int, orders: int) -> None:
    """Chi-square over seeds; with 8 rounds in place of 16, sizes 5 and 6 fail."""
    each = 50
    keys = draw(np.arange(each * orders), 1)[:, None]
    found = Counter(map(tuple, permuted(np.arange(size)[None], size, keys).tolist()))
    chi_square = sum((found[order] - each) ** 2 / each for order in found) + each * (orders - len(found))
    assert chi_square < orders - 1 + 4 * (2 * (orders - 1)) ** 0.5  # mean and four standard deviations


def test_pairs_of_places_are_independent() -> None:
    """Neighbours, and places in one row or column of the grid: where the first and second go, over seeds."""
    size, seeds = 40, 31_200
    found = permuted(np.arange(size)[None], size, draw(np.arange(seeds), 2)[:, None])
    for first, second in ((0, 1), (0, 7), (0, 14), (3, 39)):
        pairs = np.bincount(found[:, first] * size + found[:, second], minlength=size**2).reshape(size, size)
        assert not pairs.diagonal().any()
        cells = pairs[~np.eye(size, dtype=bool)]
        expected = seeds / len(cells)
        chi_square = float(((cells - expected) ** 2 / expected).sum())
        assert abs(chi_square - len(cells)) < 4 * (2 * len(cells)) ** 0.5


@pytest.mark.parametrize("place", [-1, 3])
def test_a_place_outside(place: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        permuted(place, 3, draw(0))


@given(st.integers(1, 50), st.integers(0, 9))
def test_one_source_gives_every_sample_once_an_epoch(size: int, seed: int) -> None:
    source, order = Mixture([size], seed=seed).locate(np.arange(3 * size))
    assert not source.any()
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_epochs_seeds_and_sources_differ() -> None:
    order = Mixture([100]).locate(np.arange(200))[1].tolist()
    assert order[:100] != order[100:] and order[:100] != sorted(order[:100])
    assert order[:100] != Mixture([100], seed=1).locate(np.arange(100))[1].tolist()
    source, rows = Mixture([BLOCK // 2] * 2, [1, 1]).locate(np.arange(BLOCK))
    assert rows[source == 0].tolist() != rows[source == 1].tolist()


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0.05, 10)), min_size=2, max_size=5),
    st.integers(0, 5), st.integers(0, 10**7),
)  # fmt: skip
@settings(max_examples=50)
def test_a_mixture_keeps_its_shares_and_its_epochs(several: list[tuple[int, float]], seed: int, far: int) -> None:
    sizes, weights = zip(*several, strict=True)
    mixture = Mixture(sizes, weights, seed)
    exact = np.array(weights) / sum(weights) * BLOCK
    assert mixture.counts.sum() == BLOCK and (np.abs(mixture.counts - exact) < 1).all()
    blocks = 4
    source, rows = mixture.locate(np.arange(blocks * BLOCK))
    for block in range(blocks):
        given_by = np.bincount(source[block * BLOCK : (block + 1) * BLOCK], minlength=len(sizes))
        assert given_by.tolist() == mixture.counts.tolist()
    for number, size in enumerate(sizes):  # after whole blocks, no sample has been given twice more than another
        times = np.bincount(rows[source == number], minlength=size)
        assert len(times) == size and times.max() - times.min() <= 1
    # A pure function: from the middle, one by one, it says the same.
    some = far + np.arange(3)
    together = np.stack(mixture.locate(some))
    again = Mixture(sizes, weights, seed)
    alone = np.concatenate([np.stack(again.locate(np.array([s]))) for s in some], axis=1)
    assert np.array_equal(together, alone)


def test_golden_mixture() -> None:
    source, rows = Mixture([5, 7], [3, 1], seed=2).locate(np.arange(8))
    assert [source.tolist(), rows.tolist()] == GOLDEN_MIXTURE


def test_sources_are_interleaved_at_once() -> None:
    source, _ = Mixture([9, 9], [1, 1]).locate(np.arange(100))
    assert 30 <= int(source.sum()) <= 70


def test_shares_by_largest_remainders() -> None:
    assert thousandths([1, 1, 1]).tolist() == [334, 333, 333]
    assert thousandths([0.7, 0.2, 0.1]).tolist() == [700, 200, 100]
    assert thousandths([3]).tolist() == [1000]
    assert thousandths([1, 4000]).tolist() == [0, 1000]


@pytest.mark.parametrize(("sizes", "seed"), [([], 0), ([0], 0), ([3], -1)])
def test_no_samples(sizes: list[int], seed: int) -> None:
    with pytest.raises(ValueError, match="sizes"):
        Mixture(sizes, seed=seed)
