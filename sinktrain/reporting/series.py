"""The arithmetic behind the figures: moving averages, thinning, what to draw beside what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sinktrain.reporting.records import Floats, Results, Row

POINTS = 320  # of a curve: about one a unit of the figure's width

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A line, or dots for a row that was predicted at a sample of positions only. `x` counts text tokens from 1."""

    row: Row
    x: Doubles
    y: Doubles
    dots: bool = False


def window_length(tokens: int) -> int:
    """How many tokens the moving average spans: a power of two, about a 64th of the stream, at least 16."""
    return int(2 ** max(4, math.floor(math.log2(max(tokens, 1) / 64)))) if tokens >= 64 else 16


def moving_average(values: Floats, length: int) -> Doubles:
    """The mean of the last `length` numbers, NaN left out; NaN where fewer than an eighth of them exist."""
    known = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0).astype(np.float64))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - length, 0)
    number = counts[ends] - counts[starts]
    mean = (totals[ends] - totals[starts]) / np.maximum(number, 1)
    return np.where(number >= max(1, length // 8), mean, np.nan)


def curves(results: Results, length: int) -> list[Curve]:
    """One curve a row, in the order of the rows."""
    reference = next((row for row in results.rows if row.method == "streaming"), None)
    drawn = []
    for row in results.rows:
        values = results.nll[row.name]
        if row.method == "recompute":
            drawn.append(_sampled(row, values, None if reference is None else results.nll[reference.name]))
            continue
        mean = moving_average(values, length)
        x = np.arange(1, len(mean) + 1)
        known = np.isfinite(mean)
        if known.any():
            picked = _logarithmic(x[known][0], x[known][-1]) - 1
            drawn.append(Curve(row, (picked + 1).astype(np.float64), mean[picked]))
    return [curve for curve in drawn if curve.x.size]


def _logarithmic(first: int, last: int) -> npt.NDArray[np.int64]:
    return np.unique(np.geomspace(first, last, POINTS).round().astype(np.int64))


def _sampled(row: Row, values: Floats, reference: Floats | None, groups: int = 12) -> Curve:
    """Dots for a sample: the reference's mean over a stretch, plus the mean paired difference of the sample there.

    The bare mean of a few sampled tokens says more about which tokens were drawn than about the method; the paired
    difference has nearly all of that noise taken out. Without a reference the bare mean has to do.
    """
    positions = np.flatnonzero(np.isfinite(values) & (True if reference is None else np.isfinite(reference)))
    x, y = [], []
    for group in np.array_split(positions, min(groups, max(1, len(positions) // 8))):
        if not group.size:
            continue
        x.append(float(np.sqrt((group[0] + 1.0) * (group[-1] + 1.0))))
        if reference is None:
            y.append(float(values[group].mean()))
        else:
            stretch = reference[group[0] : group[-1] + 1]
            y.append(float(np.nanmean(stretch) + (values[group] - reference[group]).mean()))
    return Curve(row, np.array(x), np.array(y), dots=True)


def far_rows(models: list[Results], gap: float = 1.0) -> set[str]:
    """Names of the rows that are so much worse in one of the models that they need a scale of their own.

    Args:
        models: the evaluated models that share one scale.
        gap: nats per token above the best row of the same model.
    """
    far = set()
    for results in models:
        known = [row.nll_full_cache for row in results.rows if math.isfinite(row.nll_full_cache)]
        far |= {row.name for row in results.rows if known and row.nll_full_cache > min(known) + gap}
    return far
