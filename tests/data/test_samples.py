"""Samples, their endless order, and the sink in front of every row."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinktrain.data.samples import ChunkedSamples, OrderedSampler, collate


@given(st.integers(0, 200), st.integers(1, 20), st.integers(0, 4))
def test_chunks_are_the_text(tokens: int, text_length: int, sinks: int) -> None:
    text = np.arange(tokens, dtype=np.uint16)
    samples = ChunkedSamples(text, text_length + sinks, sinks)
    assert len(samples) == tokens // text_length
    chunks = [samples[i] for i in range(len(samples))]
    assert all(chunk.dtype == torch.int64 and chunk.shape == (text_length,) for chunk in chunks)
    assert [int(t) for chunk in chunks for t in chunk] == list(range(len(samples) * text_length))
    for outside in (-1, len(samples)):
        with pytest.raises(IndexError):
            samples[outside]


def test_tokens_above_the_signed_range() -> None:
    assert ChunkedSamples(np.array([65_535, 40_000], dtype=np.uint16), 2, 0)[0].tolist() == [65_535, 40_000]


def test_no_room_for_text() -> None:
    with pytest.raises(ValueError, match="no room"):
        ChunkedSamples(np.arange(9, dtype=np.uint16), 2, 2)


@given(
    st.integers(1, 50), st.integers(0, 9), st.integers(0, 500), st.sampled_from([1, 2, 4]), st.integers(1, 4)
)  # fmt: skip
def test_order_is_the_same_for_any_ranks_and_start(n: int, seed: int, start: int, ranks: int, batch: int) -> None:
    """The reference is the run from its beginning on one rank; whatever step it is taken up at, its tail follows."""
    steps = 5
    whole = list(islice(OrderedSampler(n, seed), start + steps * ranks * batch))
    each = [list(islice(OrderedSampler(n, seed, start, rank, ranks), steps * batch)) for rank in range(ranks)]
    for step in range(steps):
        used = sorted(s for mine in each for s in mine[step * batch : (step + 1) * batch])
        first = start + step * ranks * batch
        assert used == sorted(whole[first : first + ranks * batch])
    for rank, mine in enumerate(each):
        assert mine == [sample for s, sample in enumerate(whole) if s >= start and s % ranks == rank]


@given(st.integers(1, 50), st.integers(0, 9))
def test_every_epoch_holds_every_sample_once(n: int, seed: int) -> None:
    order = list(islice(OrderedSampler(n, seed), 3 * n))
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    order = list(islice(OrderedSampler(100, 0), 200))
    assert order[:100] != order[100:]
    assert order[:100] != list(islice(OrderedSampler(100, 1), 100))
    assert order[:100] != sorted(order[:100])


def test_sampler_has_no_length_and_no_samples_is_refused() -> None:
    with pytest.raises(TypeError):
        len(OrderedSampler(3, 0))  # type: ignore[arg-type]
    for wrong in ((0, 0), (3, -1), (3, 0, -1), (3, 0, 0, 2, 2)):
        with pytest.raises(ValueError):
            OrderedSampler(*wrong)


@given(st.integers(1, 5), st.integers(1, 9), st.lists(st.integers(100, 110), max_size=4, unique=True))
def test_sinks_once_in_front_and_never_a_target(rows: int, n: int, sink_ids: list[int]) -> None:
    samples = [torch.arange(n) + row for row in range(rows)]
    batch = collate(samples, sink_ids)
    k = len(sink_ids)
    assert batch["input_ids"].shape == batch["labels"].shape == (rows, k + n)
    for row, sample in enumerate(samples):
        assert batch["input_ids"][row].tolist() == sink_ids + sample.tolist()
        assert batch["labels"][row].tolist() == [-100] * k + sample.tolist()
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_labels_are_no_view_of_the_input() -> None:
    batch = collate([torch.arange(3)], [7])
    batch["labels"][:] = -100
    assert batch["input_ids"].tolist() == [[7, 0, 1, 2]]


@pytest.mark.parametrize("nothing", [[], [torch.empty(0, dtype=torch.int64)]])
def test_empty_batch_is_refused(nothing: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="empty batch"):
        collate(nothing, [7])
