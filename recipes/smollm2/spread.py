"""How far numbers spread, with intervals, and whether two models spread alike over the same streams."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinktrain.evaluation.statistics.mean import estimate

Values = NDArray[np.float64]
Z = 1.959964
"""The two-sided 95% quantile of the normal distribution."""
FEWEST = 6
"""Values; with fewer an interval of a standard deviation means nothing."""


def sd_interval(values: Values) -> tuple[float, float]:
    """The two-sided 95% interval of a standard deviation, for distributions that need not be normal.

    Bonett (Computational Statistics & Data Analysis 50, 2006, 775-782): the logarithm of the variance, give or take a
    standard error from the kurtosis around a trimmed mean. (0, 0) where all values are equal.
    """
    n = len(values)
    if n < FEWEST:
        return 0.0, float("inf")
    variance = float(values.var(ddof=1))
    if variance == 0:
        return 0.0, 0.0
    cut = int(n / (2 * np.sqrt(n - 4)))
    middle = np.sort(values)[cut : n - cut].mean()
    kurtosis = n * float(((values - middle) ** 4).sum()) / (variance * (n - 1)) ** 2
    c = n / (n - Z)
    error = c * np.sqrt(max(0.0, kurtosis - (n - 3) / n) / (n - 1))
    low, high = np.sqrt(c * variance * np.exp([-Z * error, Z * error]))
    return float(low), float(high)


def spread(nll: Values) -> dict[str, Any]:
    """What is told of the mean NLLs (n,) of n streams: the spread of their perplexities.

    `sd` is the standard deviation of ln PPL (a hundredth is about 1% of PPL), `sd_ppl` that of PPL itself.
    """
    ppl = np.exp(nll)
    return {
        "streams": len(nll),
        "ppl": float(np.exp(nll.mean())),
        "sd": float(nll.std(ddof=1)),
        "sd_interval": list(sd_interval(nll)),
        "sd_ppl": float(ppl.std(ddof=1)),
        "sd_ppl_interval": list(sd_interval(ppl)),
        "lowest": float(ppl.min()),
        "highest": float(ppl.max()),
    }


def compare_spreads(a: Values, b: Values, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The standard deviation of b over that of a, and their mean difference, over the same n streams.

    `ratio_interval` is the percentile interval of a bootstrap that draws pairs. `p` is that of a permutation test: were
    the spreads equal, the two values of a pair, each less the mean of its model, might as well change places.
    """
    ratio = _log_ratio(a[None], b[None])[0]
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(a), size=(resamples, len(a)))
    low, high = np.quantile(_log_ratio(a[draws], b[draws]), [0.025, 0.975])
    x, y = a - a.mean(), b - b.mean()
    swapped = generator.random((resamples, len(a))) < 0.5
    other = _log_ratio(np.where(swapped, y, x), np.where(swapped, x, y))
    difference = estimate(b - a, block=1, seed=seed)  # streams do not depend on each other
    return {
        "streams": len(a),
        "ratio": float(np.exp(ratio)),
        "ratio_interval": [float(np.exp(low)), float(np.exp(high))],
        "p": float((1 + (np.abs(other) >= abs(ratio) - 1e-12).sum()) / (1 + resamples)),
        "difference": difference.mean,
        "difference_interval": [difference.low, difference.high],
    }


def _log_ratio(a: Values, b: Values) -> Values:
    """ln of the ratio of standard deviations, row by row; variances of exactly 0 count as tiny ones."""
    tiny = np.finfo(np.float64).tiny
    ratio: Values = 0.5 * (np.log(b.var(axis=1) + tiny) - np.log(a.var(axis=1) + tiny))
    return ratio
