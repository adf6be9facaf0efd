"""What is drawn anew: blocks of neighbouring tokens, or documents; and the studentised bootstrap over them.

Both are units with a sum and a count of tokens, and the mean a token is the ratio of the two totals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinktrain.evaluation.statistics.pivots import Drawn

Series = NDArray[np.float64]
Numbers = NDArray[np.int64]
LEAST_ERROR = 0.2
"""Of the standard error; a draw of units that are all alike would have none, and its t no end."""

WIDER = 1.04
"""By simulation (recipes/statistics): the bootstrap does not know that the length of its blocks was chosen from the
same series, nor of a tail beyond it, and would call 5 to 6% of differences as large as the margin proven."""


@dataclass(frozen=True)
class Units:
    """What is drawn anew.

    Args:
        sums: (U,) of the series over each unit.
        counts: (U,) tokens of each unit.
        drawn: how many units make one text: all of the documents, or n / b of the overlapping blocks.
        seen: the share of the mean's squared error that lies inside units.
    """

    sums: Series
    counts: Series
    drawn: float
    seen: float = 1.0

    @property
    def mean(self) -> float:
        """A token, over all units."""
        return float(self.sums.sum() / self.counts.sum())

    def standard_error(self) -> float:
        """Of the mean of one text, by linearising the ratio (Cochran 1977, equation 6.13); 0 with a single unit."""
        if self.drawn <= 1:
            return 0.0
        residuals = self.sums - self.mean * self.counts
        within = float(np.sum(residuals**2)) / (len(residuals) * (1 - 1 / self.drawn))
        return float(np.sqrt(within / self.drawn / self.seen) / self.counts.mean())

    def pivot(self, resamples: int, seed: int) -> Drawn:
        """The bootstrap's (mean - truth) / standard error, each with the standard error of its own draw.

        Künsch (1989) for the blocks, Götze and Künsch (1996) for the studentising, which lets bounds follow the skew of
        the series and the noise of the error itself. `WIDER` than drawn.
        """
        draws = max(2, int(np.ceil(self.drawn)))
        least = LEAST_ERROR * self.standard_error() * np.sqrt(self.seen)
        generator = np.random.default_rng(seed)
        values = np.zeros(resamples)
        if least == 0:
            return Drawn(values)
        rows = max(1, 1_000_000 // draws)  # keeps the table of draws small
        for begin in range(0, resamples, rows):
            chosen = generator.integers(0, len(self.sums), size=(min(rows, resamples - begin), draws))
            sums, counts = self.sums[chosen], self.counts[chosen]
            total = counts.sum(axis=1)
            mean = sums.sum(axis=1) / total
            residuals = sums - mean[:, None] * counts
            error = np.sqrt(np.einsum("rd,rd->r", residuals, residuals) * draws / (draws - 1)) / total
            values[begin : begin + rows] = (mean - self.mean) / np.maximum(error, least)
        return Drawn(WIDER * np.sort(values))


def blocks(series: Series, length: int, documents: Numbers | None = None, seen: float = 1.0) -> Units:
    """Every run of `length` neighbouring tokens of the series (n,), none across the end of a document.

    Args:
        series: one number a token, in the order of the text.
        length: tokens a block.
        documents: (n,) the number of each token's document, in order; a document shorter than a block counts as one
            with the next.
        seen: the share of the squared error that blocks of this length see.
    """
    sums = np.concatenate(([0.0], np.cumsum(series)))
    found = sums[length:] - sums[:-length]
    if documents is not None:
        found = found[_inside(documents, length)]
    return Units(found, np.full(len(found), float(length)), len(series) / length, seen)


def _inside(documents: Numbers, length: int) -> NDArray[np.bool_]:
    """(n - length + 1,) which blocks begin and end in one document, short documents having been joined."""
    sizes = np.diff(np.flatnonzero(np.diff(documents, prepend=documents[0] - 1, append=documents[-1] + 1)))
    joined, size = [], 0
    for each in sizes.tolist():
        size += each
        if size >= length:
            joined.append(size)
            size = 0
    if size and joined:
        joined[-1] += size
    parts = np.repeat(np.arange(len(joined)), joined) if joined else np.zeros(len(documents), dtype=np.int64)
    inside: NDArray[np.bool_] = parts[: len(parts) - length + 1] == parts[length - 1 :]
    return inside


def whole_documents(series: Series, documents: Numbers) -> Units:
    """The documents, with what the series (n,) has in each.

    Args:
        series: one number a token.
        documents: (n,) the number of each token's document.
    """
    _, index = np.unique(documents, return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    sums = np.bincount(index, weights=series).astype(np.float64)
    return Units(sums, counts, float(len(counts)))
