"""The moving-block bootstrap covers, notices dependence, and finds the exact mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinktrain.evaluation.statistics.mean import estimate
from sinktrain.evaluation.statistics.memory import block_length


def ar1(n: int, phi: float, generator: np.random.Generator) -> np.ndarray:
    """Autoregressive noise with unit variance."""
    shocks = generator.standard_normal(n + 200) * np.sqrt(1 - phi**2)
    values = np.zeros(n + 200)
    for t in range(1, n + 200):
        values[t] = phi * values[t - 1] + shocks[t]
    return values[200:]


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_coverage(phi: float) -> None:
    """95% intervals hold the true mean, 0, in 90 to 98 of 100 series of 1,000 (160 tries: standard error 1.7%)."""
    generator = np.random.default_rng(3)
    found = [estimate(ar1(1000, phi, generator), resamples=600, seed=s) for s in range(160)]
    covered = np.mean([interval.low < 0 < interval.high for interval in found])
    assert 0.90 <= covered <= 0.98
    one_sided = np.mean([interval.upper > 0 for interval in found])
    assert 0.90 <= one_sided <= 0.99


def test_single_tokens_would_be_too_sure() -> None:
    """Teeth: with blocks of one, the interval of dependent noise is far too narrow."""
    series = ar1(4000, 0.8, np.random.default_rng(0))
    naive, blocks = estimate(series, block=1), estimate(series)
    assert blocks.block_length >= 10
    assert (blocks.high - blocks.low) > 2 * (naive.high - naive.low)


def test_block_length_grows_with_the_memory_of_the_series() -> None:
    generator = np.random.default_rng(1)
    lengths = [block_length(ar1(4000, phi, generator)) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < lengths[1] < lengths[2] <= 200


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=200), st.integers(1, 50))
def test_mean_is_exact_and_inside(values: list[float], block: int) -> None:
    series = np.array(values)
    found = estimate(series, block=min(block, len(series)), resamples=200)
    assert found.mean == pytest.approx(series.mean())
    assert found.low <= found.lower <= found.upper <= found.high
    moved = estimate(2 * series + 3, block=min(block, len(series)), resamples=200)
    for name in ("low", "lower", "upper", "high"):
        assert getattr(moved, name) == pytest.approx(2 * getattr(found, name) + 3, abs=1e-6)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_is_made_of_nothing(values: list[float]) -> None:
    with pytest.raises(ValueError, match="empty or not finite"):
        estimate(np.array(values))
