"""How long a series remembers, and so how long its blocks must be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

LONGER = 2.0
"""Times the length that is best for the variance: an interval that is right needs longer blocks, whose error is less
biased though noisier, when the bootstrap is studentised and so knows of the noise (Sun, Phillips and Jin 2008)."""
MOST_BLOCKS = 2000
"""More say nothing more, and cost time."""


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


def interval_block_length(series: Series) -> int:
    """The block length of intervals: `LONGER` times that of `block_length`, at most `MOST_BLOCKS` blocks, <= n / 4."""
    n = len(series)
    base = block_length(series)
    longer = max(int(np.ceil(LONGER * base)) if base > 1 else 1, -(-n // MOST_BLOCKS))
    return min(longer, max(base, n // 4, 1))
