"""Batches, and which of them a process takes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinktrain.data.mixture import Mixture
from sinktrain.data.packing import Chunks
from sinktrain.data.samples import Batches, OrderedBatches, Pick, Share, in_order


def sources(sizes: list[int], sinks: list[int]) -> list[Chunks]:
    """Sources whose samples are 1000 * source + 3 * number + 0, 1, 2."""
    return [Chunks(1000 * number + np.arange(3 * size, dtype=np.uint16), 3, sinks) for number, size in enumerate(sizes)]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=3), st.integers(0, 9), st.integers(0, 500),
    st.sampled_from([1, 2, 3, 4]), st.integers(1, 4),
)  # fmt: skip
def test_order_is_the_same_for_any_ranks_and_start(
    sizes: list[int], seed: int, start: int, ranks: int, batch: int
) -> None:
    """The reference is the run from its beginning on one rank; whatever step it is taken up at, its tail follows."""
    steps = 5
    order = Mixture(sizes, [1.0] * len(sizes), seed)
    whole = list(islice(OrderedBatches(order, Share(1)), start + steps * ranks * batch))
    each = [list(islice(OrderedBatches(order, Share(batch, start, rank, ranks)), steps)) for rank in range(ranks)]
    for step in range(steps):
        used = sorted(s for mine in each for s in zip(*(part.tolist() for part in mine[step]), strict=True))
        first = start + step * ranks * batch
        assert used == [tuple(int(part[0]) for part in pick) for pick in whole[first : first + ranks * batch]]
    for rank, mine in enumerate(each):
        numbers = np.concatenate([pick.samples for pick in mine])
        assert (numbers % ranks == rank).all() and (np.diff(numbers) == ranks).all()


def test_order_goes_on_behind_what_is_looked_up_at_once() -> None:
    picks = list(islice(OrderedBatches(Mixture([7]), Share(100)), 25))
    assert np.concatenate([pick.samples for pick in picks]).tolist() == list(range(2500))
    rows = np.concatenate([pick.rows for pick in picks])
    assert all(sorted(rows[i : i + 7].tolist()) == list(range(7)) for i in range(0, 2450, 7))


def test_sampler_has_no_length_and_wrong_shares_are_refused() -> None:
    with pytest.raises(TypeError):
        len(OrderedBatches(Mixture([3]), Share(1)))  # type: ignore[arg-type]
    for wrong in ((0,), (1, -1), (1, 0, 2, 2), (1, 0, -1)):
        with pytest.raises(ValueError, match="out of range"):
            Share(*wrong)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 6), st.integers(0, 99))
def test_a_batch_is_what_its_sources_hold(sizes: list[int], sinks: int, size: int, seed: int) -> None:
    ids = [900, 901][:sinks]
    batches = Batches(sources(sizes, ids))
    pick = next(iter(OrderedBatches(Mixture(sizes, [1.0] * len(sizes), seed), Share(size))))
    batch = batches[pick]
    assert set(batch) == {"input_ids", "labels", "samples"} and {each.dtype for each in batch.values()} == {torch.int64}
    assert batch["samples"].tolist() == list(range(size))
    for source, row, found, labels in zip(
        pick.sources.tolist(), pick.rows.tolist(), batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
    ):
        text = [1000 * source + 3 * row + i for i in range(3)]
        assert found == ids + text and labels == [-100] * sinks + text


def test_empty_batch_is_refused() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="empty batch"):
        Batches(sources([3], []))[Pick(nothing, nothing, nothing)]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 50)),
)  # fmt: skip
def test_validation_is_shared_evenly(sizes: list[int], ranks: int, batch: int, most: int | None) -> None:
    alone = in_order(sizes, Share(batch), most)
    each = [in_order(sizes, Share(batch, 0, rank, ranks), most) for rank in range(ranks)]
    seen = [[tuple(s) for pick in mine for s in zip(*(part.tolist() for part in pick), strict=True)] for mine in each]
    whole = [tuple(s) for pick in alone for s in zip(*(part.tolist() for part in pick), strict=True)]
    total = sum(sizes) if most is None else min(most, sum(sizes))
    assert len(whole) == len(set(whole)) == total
    assert len({len(mine) for mine in seen}) == 1
    assert [s for turn in zip(*seen, strict=True) for s in turn] == whole[: total // ranks * ranks]
    for source, size in enumerate(sizes):  # rows in their order, and a fair part of each source
        rows = [row for _, its, row in whole if its == source]
        assert rows == list(range(len(rows))) and abs(len(rows) - total * size / sum(sizes)) <= len(sizes)
