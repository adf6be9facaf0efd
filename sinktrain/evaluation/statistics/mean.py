"""The mean of a series over one text, resampled by document where there are enough and by block where not."""

from __future__ import annotations

import numpy as np

from sinktrain.evaluation.statistics.interval import Interval, Resampled
from sinktrain.evaluation.statistics.memory import interval_blocks
from sinktrain.evaluation.statistics.units import Numbers, Series, Units, blocks, whole_documents

RESAMPLES = 5000
FEWEST_DOCUMENTS = 8
"""Effective documents; with fewer, what differs between documents can hardly be told from a sample. By simulation
(recipes/statistics) the studentised bootstrap covers from 5 on."""


def choose_units(series: Series, documents: Numbers | None, block: int | None) -> tuple[Units, int, Resampled, float]:
    """What to resample: documents if at least `FEWEST_DOCUMENTS` of equal length would tell as much, else blocks.

    Returns:
        The units, tokens a block (0 for documents), the kind, and the effective number of documents.
    """
    effective = 1.0
    if documents is not None:
        whole = whole_documents(series, documents)
        effective = float(whole.counts.sum() ** 2 / np.sum(whole.counts**2))
        if effective >= FEWEST_DOCUMENTS and block is None:
            return whole, 0, "documents", effective
    length, seen = interval_blocks(series) if block is None else (min(block, len(series)), 1.0)
    return blocks(series, length, documents, seen), length, "blocks", effective


def estimate(
    series: Series,
    documents: Numbers | None = None,
    *,
    block: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of `series` (n,) with bounds of the studentised bootstrap.

    Args:
        series: one number a token, in the order of the text.
        documents: (n,) the number of each token's document; None for a text that is one.
        block: tokens a block; chosen by `interval_blocks`, or documents instead of blocks, when None.
        resamples: how many times the series is drawn anew.
        seed: of the draws.

    Raises:
        ValueError: the series is empty or holds a number that is not finite.
    """
    series = np.asarray(series, dtype=np.float64)
    if len(series) == 0 or not np.isfinite(series).all():
        raise ValueError("the series is empty or not finite")
    units, length, resampled, effective = choose_units(series, documents, block)
    return Interval(
        mean=float(series.mean()),
        standard_error=units.standard_error(),
        pivot=units.pivot(resamples, seed),
        tokens=len(series),
        block_length=length,
        resampled=resampled,
        units=units.drawn,
        documents=1 if documents is None else len(np.unique(documents)),
        effective_documents=effective,
    )
