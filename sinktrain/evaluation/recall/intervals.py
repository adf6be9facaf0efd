"""Intervals for a share of right answers, and for a mean over facts."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Of a two-sided 95% interval."""

WILSON = "Wilson, 95%"
CLUSTERED = (
    "95%, bootstrap over samples (percentiles of 2,000 draws), never narrower than Wilson's for as many independent "
    "questions"
)
STUDENT = "95%, Student's t over facts"


def wilson(right: int, asked: int) -> list[float]:
    """Wilson's 95% score interval (1927) for a share of `asked` independent answers, of which `right` are right.

    Raises:
        ValueError: nothing was asked.
    """
    if asked < 1:
        raise ValueError("nothing was asked")
    share, spread = right / asked, Z * Z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / asked + spread / asked / 4) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def clustered(right: Sequence[int], asked: int, *, resamples: int = 2000, seed: int = 0) -> list[float]:
    """A 95% interval for a share when questions come in clusters (here: samples) that may depend on each other inside.

    Where all clusters are alike a bootstrap says nothing, so it is never narrower than Wilson's interval.

    Args:
        right: right answers by cluster.
        asked: questions a cluster.
        resamples: how many times the clusters are drawn anew.
        seed: of the draws.
    """
    counts = np.asarray(right, dtype=np.float64)
    low, high = _percentiles(counts, resamples, seed) / asked
    independent = wilson(int(counts.sum()), asked * len(counts))
    return [min(float(low), independent[0]), max(float(high), independent[1])]


def of_mean(values: NDArray[np.float64]) -> list[float]:
    """Student's 95% interval for the mean of two or more independent `values` (n,).

    Not a bootstrap, whose percentiles are too narrow for few: at 8 values they hold the truth in 88% of cases.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def _percentiles(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    ends: NDArray[np.float64] = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return ends


def accuracy(right: int, asked: int, interval: list[float]) -> dict[str, Any]:
    """The fields that every row has."""
    return {"asked": asked, "right": right, "accuracy": right / asked, "interval": interval}
