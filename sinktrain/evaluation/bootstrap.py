"""Intervals for the mean of a dependent series: the moving-block bootstrap, studentised.

The NLLs of neighbouring tokens depend on each other, so single tokens must not be resampled; blocks of neighbours are,
or whole documents. The parts are in `sinktrain.evaluation.statistics`.
"""

from __future__ import annotations

from sinktrain.evaluation.statistics.interval import Interval
from sinktrain.evaluation.statistics.mean import RESAMPLES, estimate
from sinktrain.evaluation.statistics.memory import block_length
from sinktrain.evaluation.statistics.units import Numbers, Series

__all__ = ["Interval", "Series", "block_length", "bootstrap_mean"]


def bootstrap_mean(
    series: Series,
    *,
    documents: Numbers | None = None,
    block: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of `series` (n,) with its intervals; see `sinktrain.evaluation.statistics.mean.estimate`.

    Args:
        series: one number a token, in the order of the text.
        documents: (n,) the number of each token's document; None for a text that is one.
        block: tokens a block; chosen from the autocorrelation when None.
        resamples: how many times the series is drawn anew.
        seed: of the draws.

    Raises:
        ValueError: the series is empty or holds a number that is not finite.
    """
    return estimate(series, documents, block=block, resamples=resamples, seed=seed)
