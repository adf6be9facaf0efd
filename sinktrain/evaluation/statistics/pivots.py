"""What (estimate - truth) / standard error is distributed like: drawn by a bootstrap, or Student's t.

Bounds and p-values both come from here, so that p <= 0.05 where, and only where, the 95% bound is on the right side.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Pivot(Protocol):
    """A distribution of the studentised estimate."""

    def quantile(self, p: float) -> float:
        """The value that it stays below with probability p."""

    def at_most(self, value: float) -> float:
        """The p-value of having found `value` or less."""

    def at_least(self, value: float) -> float:
        """The p-value of having found `value` or more."""


@dataclass(frozen=True)
class Drawn:
    """As the bootstrap drew it.

    Args:
        values: (B,) sorted upwards.
    """

    values: NDArray[np.float64]

    def quantile(self, p: float) -> float:
        """The order statistic at which the p-value below becomes p; the outer one where B is too small for p."""
        if p > 0.5:
            return float(self.values[len(self.values) - self._rank(1 - p)])
        return float(self.values[self._rank(p) - 1])

    def _rank(self, p: float) -> int:
        return max(1, floor(p * (len(self.values) + 1) + 1e-9))

    def at_most(self, value: float) -> float:
        """(1 + draws that are <= value) / (1 + B) (Davison and Hinkley 1997, equation 4.11): never 0."""
        return float(1 + np.searchsorted(self.values, value, side="right")) / (1 + len(self.values))

    def at_least(self, value: float) -> float:
        """The same for draws that are >= value."""
        below = int(np.searchsorted(self.values, value, side="left"))
        return float(1 + len(self.values) - below) / (1 + len(self.values))


@dataclass(frozen=True)
class Student:
    """Student's t.

    Args:
        df: degrees of freedom, not necessarily whole.
        scale: how much wider than the t.
    """

    df: float
    scale: float = 1.0

    def quantile(self, p: float) -> float:
        """As tabled, times the scale."""
        from scipy.special import stdtrit  # type: ignore[import-untyped]

        return self.scale * float(stdtrit(self.df, p))

    def at_most(self, value: float) -> float:
        """The distribution function."""
        from scipy.special import stdtr

        return float(stdtr(self.df, value / self.scale))

    def at_least(self, value: float) -> float:
        """The distribution function of the negative: t is symmetric."""
        return self.at_most(-value)
