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
    n, reach = len(series), _reach(series)
    if reach is None:
        return max(1, n // 4)
    return int(np.clip(np.ceil((1.5 * reach**2 * n) ** (1 / 3)), 1, max(1, n // 4)))


def interval_blocks(series: Series) -> tuple[int, float]:
    """The block length of intervals, and the share of the mean's squared error that blocks of it see.

    It is `LONGER` times `block_length`, so long that there are at most `MOST_BLOCKS`, and n / 4 at most. What a block
    does not see are the correlations across its ends: a share of g / (s length) (Künsch 1989, theorem 3.3).
    """
    n, base = len(series), block_length(series)
    longer = max(int(np.ceil(LONGER * base)) if base > 1 else 1, -(-n // MOST_BLOCKS))
    length = min(longer, max(base, n // 4, 1))
    reach = _reach(series)
    return length, 1 - float(np.clip((reach or 0.0) / length, 0.0, 0.5))


def _reach(series: Series) -> float | None:
    """g / s in tokens: the sum of k R(k) over that of R(k), over all lags k; None where the latter is not positive."""
    n = len(series)
    centred = series - series.mean()
    if n < 40 or not np.any(centred):
        return 0.0
    lags = min(n // 4, 10 * int(np.ceil(np.log10(n)) + 5))
    covariance = np.array([np.dot(centred[: n - k], centred[k:]) / n for k in range(lags + 1)])
    quiet = np.abs(covariance[1:] / covariance[0]) < 2 * np.sqrt(np.log10(n) / n)
    run = max(5, int(np.sqrt(np.log10(n))))
    ends = [k for k in range(len(quiet) - run) if quiet[k : k + run].all()]
    window = 2 * max(1, ends[0] if ends else lags // 2)
    k = np.arange(1, min(window, lags) + 1)
    taper = np.clip(2 * (1 - k / window), 0, 1)
    g = 2 * float(np.sum(taper * k * covariance[k]))
    s = covariance[0] + 2 * float(np.sum(taper * covariance[k]))
    return g / s if s > 0 else None
