"""The endless order of samples of one source, or of several mixed by weight, as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sinktrain.data.order import draw, permuted

BLOCK = 1000
"""Of so many consecutive samples of a mixture, every source has its exact share: weights count in thousandths."""


class Mixture:
    """Says which sample of which source comes s-th, for any s, without a list of what came before.

    Every `BLOCK` samples are dealt to the sources in a drawn order. The n-th sample that a source gives is place n % N
    of the permutation that (seed, source, n // N) draws, N being its number of samples: each source has epochs of its
    own, and gives every sample once before it gives one twice.

    Args:
        sizes: how many samples each source has.
        weights: of the sources; None for a single one. Shares are rounded to thousandths by largest remainders.
        seed: of the order.

    Attributes:
        counts: how many of `BLOCK` samples each source has.

    Raises:
        ValueError: no source, an empty one, or a negative seed.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1 or seed < 0:
            raise ValueError(f"sizes {list(sizes)}, seed {seed}")
        self.sizes, self.seed = np.array(sizes, dtype=np.int64), seed
        self.counts = thousandths([1.0] * len(sizes) if weights is None else weights)
        self._ends = np.cumsum(self.counts)

    def locate(self, s: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each sample and its number in that source, both like `s`: (n,) int64."""
        if len(self.sizes) == 1:
            source, turn = np.zeros_like(s), s
        else:
            block, slot = np.divmod(s, BLOCK)
            slot = permuted(slot, BLOCK, draw(self.seed, len(self.sizes), block))
            source = np.searchsorted(self._ends, slot, side="right").astype(np.int64)
            turn = block * self.counts[source] + slot - (self._ends - self.counts)[source]
        epoch, place = np.divmod(turn, self.sizes[source])
        return source, permuted(place, self.sizes[source], draw(self.seed, source, epoch))


def thousandths(weights: Sequence[float]) -> NDArray[np.int64]:
    """Weights as integers that sum to `BLOCK`: rounded down, and what is missing goes to the largest remainders."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    counts = np.floor(exact).astype(np.int64)
    missing = BLOCK - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts
