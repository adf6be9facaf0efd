"""A mean and all that is said of its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from sinktrain.evaluation.statistics.pivots import Pivot, Student

Resampled = Literal["blocks", "documents"]
ALPHA, POWER = 0.05, 0.8
"""One-sided error of a bound, and the share of texts that `smallest_difference` and `smallest_margin` speak of."""


@dataclass(frozen=True)
class Interval:
    """A mean with its uncertainty.

    Args:
        mean: of the series.
        standard_error: of the mean.
        pivot: what (mean - truth) / standard_error is distributed like.
        tokens: length of the series.
        block_length: tokens a block; 0 where documents were resampled.
        resampled: what was drawn anew, blocks of tokens or documents.
        units: how many of them make one text.
        documents: how many documents the tokens come from.
        effective_documents: (sum of their lengths)^2 / sum of the squared lengths: how many of equal length would tell
            as much.
        seeds: how many models, trained with different seeds, were averaged.
        between_seeds: the part of `standard_error`, squared, that more text would not shrink.
    """

    mean: float
    standard_error: float
    pivot: Pivot = field(repr=False)
    tokens: int
    block_length: int
    resampled: Resampled = "blocks"
    units: float = 1.0
    documents: int = 1
    effective_documents: float = 1.0
    seeds: int = 1
    between_seeds: float = 0.0

    @property
    def low(self) -> float:
        """Lower end of the two-sided 95% interval."""
        return self._bound(1 - ALPHA / 2)

    @property
    def high(self) -> float:
        """Upper end of the two-sided 95% interval."""
        return self._bound(ALPHA / 2)

    @property
    def lower(self) -> float:
        """One-sided 95% lower bound."""
        return self._bound(1 - ALPHA)

    @property
    def upper(self) -> float:
        """One-sided 95% upper bound."""
        return self._bound(ALPHA)

    def _bound(self, p: float) -> float:
        return self.mean if self.standard_error == 0 else self.mean - self.pivot.quantile(p) * self.standard_error

    def p_below(self, margin: float) -> float:
        """p-value of "the true mean is `margin` or more"; <= 0.05 where `upper` is below `margin`."""
        return self.pivot.at_most(_studentised(self.mean - margin, self.standard_error, tie=1))

    def p_above(self, margin: float) -> float:
        """p-value of "the true mean is `margin` or less"; <= 0.05 where `lower` is above `margin`."""
        return self.pivot.at_least(_studentised(self.mean - margin, self.standard_error, tie=-1))

    @property
    def smallest_difference(self) -> float:
        """The true difference whose one-sided 95% lower bound is above 0 in 80% of texts like this one.

        `lower` is above 0 where the pivot is above q(95%) - truth / error, in 80% of texts where that is q(20%). It
        rests on the pivot's upper tail, `smallest_margin` on the lower one: for skewed series the two differ.
        """
        return (self.pivot.quantile(1 - ALPHA) - self.pivot.quantile(1 - POWER)) * self.standard_error

    @property
    def smallest_margin(self) -> float:
        """The margin that the one-sided 95% upper bound is below in 80% of texts like this one, if the truth is 0."""
        return self._margin_in_errors * self.standard_error

    @property
    def _margin_in_errors(self) -> float:
        return self.pivot.quantile(POWER) - self.pivot.quantile(ALPHA)

    def tokens_wanted(self, margin: float) -> float | None:
        """Tokens of such text for a `smallest_margin` of `margin`; None where no text would do, only more seeds.

        The squared error shrinks with the tokens, save for the part that lies between seeds.
        """
        if self.standard_error == 0:
            return 0.0
        allowed = (margin / self._margin_in_errors) ** 2 - self.between_seeds
        if allowed <= 0:
            return None
        return self.tokens * max(0.0, self.standard_error**2 - self.between_seeds) / allowed

    @property
    def df(self) -> float | None:
        """Degrees of freedom of a t; None where the bootstrap drew the distribution."""
        return self.pivot.df if isinstance(self.pivot, Student) else None


def _studentised(distance: float, error: float, tie: int) -> float:
    """`distance` in standard errors; without any error all is sure, and a distance of 0 is on the side of `tie`."""
    if error > 0:
        return distance / error
    return math.copysign(math.inf, distance or tie)
