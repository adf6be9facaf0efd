"""Intervals for the mean of a dependent series: the moving-block bootstrap (Künsch 1989; Liu and Singh 1992).

The NLLs of neighbouring tokens depend on each other, so single tokens must not be resampled; blocks of neighbours are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its uncertainty.

    Args:
        mean: of the series.
        low: lower end of the two-sided 95% interval.
        high: upper end of it.
        lower: one-sided 95% lower bound.
        upper: one-sided 95% upper bound.
        tokens: length of the series.
        block_length: tokens a block.
    """

    mean: float
    low: float
    high: float
    lower: float
    upper: float
    tokens: int
    block_length: int


def block_length(series: Series) -> int:
    """A block length from the series' own memory (after Politis and White 2004, for the moving-block bootstrap).

    The correlation is summed up to the first lag m after which several in a row are inside the noise band
    2 sqrt(log10(n) / n); the length is (2 g^2 / (4/3 s^2) n)^(1/3) with a flat-top window, between 1 and n / 4.
    """
    n = len(series)
    centred = series - series.mean()
    if n < 40 or not np.any(centred):
        return 1
    lags = min(n // 4, 10 * int(np.ceil(np.log10(n)) + 5))
    covariance = np.array([np.dot(centred[: n - k], centred[k:]) / n for k in range(lags + 1)])
    quiet = np.abs(covariance[1:] / covariance[0]) < 2 * np.sqrt(np.log10(n) / n)
    run = max(5, int(np.sqrt(np.log10(n))))
    ends = [k for k in range(len(quiet) - run) if quiet[k : k + run].all()]
    window = 2 * max(1, ends[0] if ends else lags // 2)
    k = np.arange(1, min(window, lags) + 1)
    taper = np.clip(2 * (1 - k / window), 0, 1)
    g = 2 * float(np.sum(taper * k * covariance[k]))
    spectrum = covariance[0] + 2 * float(np.sum(taper * covariance[k]))
    if spectrum <= 0:
        return max(1, n // 4)
    length = (2 * g**2 / (4 / 3 * spectrum**2) * n) ** (1 / 3)
    return int(np.clip(np.ceil(length), 1, max(1, n // 4)))


def bootstrap_mean(series: Series, *, block: int | None = None, resamples: int = 5000, seed: int = 0) -> Interval:
    """The mean of `series` (n,) with percentile intervals of the moving-block bootstrap.

    Args:
        series: one number a token, in the order of the text.
        block: tokens a block; chosen by `block_length` when None.
        resamples: how many times the series is drawn anew.
        seed: of the draws.

    Raises:
        ValueError: the series is empty or holds a number that is not finite.
    """
    series = np.asarray(series, dtype=np.float64)
    n = len(series)
    if n == 0 or not np.isfinite(series).all():
        raise ValueError("the series is empty or not finite")
    length = block or block_length(series)
    sums = np.concatenate(([0.0], np.cumsum(series)))
    block_sums = sums[length:] - sums[:-length]  # (n - length + 1,): every block there is
    count = -(-n // length)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for begin in range(0, resamples, 500):  # keeps the table of draws small
        rows = min(500, resamples - begin)
        draws = generator.integers(0, len(block_sums), size=(rows, count))
        means[begin : begin + rows] = block_sums[draws].sum(axis=1) / (count * length)
    means += series.mean() - block_sums.mean() / length  # blocks miss the ends: centre on the estimate itself
    low, lower, upper, high = np.quantile(means, [0.025, 0.05, 0.95, 0.975])
    return Interval(float(series.mean()), float(low), float(high), float(lower), float(upper), n, length)
