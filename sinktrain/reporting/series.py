"""The arithmetic behind the figures: moving averages, thinning, what to draw beside what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sinktrain.reporting.records import Floats, Results, Row

POINTS = 320  # of a curve: about one a unit of the figure's width
LINES = 7  # as many as can be told apart
FEWEST = 64  # tokens that an average takes in, where the stream has them
FIRST = 16  # position with an average: the mean of fewer tokens would only be noise

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A line, or dots for a row that was predicted at a sample of positions only. `x` counts text tokens from 1."""

    row: Row
    x: Doubles
    y: Doubles
    dots: bool = False


def span(position: int) -> int:
    """How many tokens the average at `position` (from 1) takes in: the last quarter of the stream so far, at least 64.

    A fixed span is either too coarse where the cache fills or too restless at the far end of a logarithmic axis.
    """
    return max(FEWEST, position // 4)


def moving_average(values: Floats) -> Doubles:
    """The mean over the last `span` numbers at each position, NaN left out; NaN at the first few positions."""
    known = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0).astype(np.float64))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - np.maximum(FEWEST, ends // 4), 0)
    number = counts[ends] - counts[starts]
    mean = (totals[ends] - totals[starts]) / np.maximum(number, 1)
    return np.where((number > 0) & (ends >= FIRST), mean, np.nan)


def curves(results: Results) -> list[Curve]:
    """One curve a row of the largest size, in the order of the rows."""
    rows = drawn_rows(results)
    reference = next((row for row in rows if row.method == "streaming"), None)
    drawn = []
    for row in rows:
        values = results.nll[row.name]
        if row.method == "recompute":
            drawn.append(_sampled(row, values, None if reference is None else results.nll[reference.name]))
            continue
        mean = moving_average(values)
        x = np.arange(1, len(mean) + 1)
        known = np.isfinite(mean)
        if known.any():
            picked = _logarithmic(x[known][0], x[known][-1]) - 1
            drawn.append(Curve(row, (picked + 1).astype(np.float64), mean[picked]))
    return [curve for curve in drawn if curve.x.size]


def drawn_rows(results: Results) -> list[Row]:
    """At most `LINES` of the main rows; of more caches the first, which keep the fewest sinks, and the last."""
    rows = list(results.main_rows)
    while len(rows) > LINES:
        caches = [row for row in rows if row.method == "streaming"]
        rows.remove(caches[-2] if len(caches) > 1 else rows[-1])
    return rows


def _logarithmic(first: int, last: int) -> npt.NDArray[np.int64]:
    return np.unique(np.geomspace(first, last, POINTS).round().astype(np.int64))


def _sampled(row: Row, values: Floats, reference: Floats | None, groups: int = 12) -> Curve:
    """Dots for a sample: the reference's curve, plus the mean paired difference of the sample since the last dot.

    The bare mean of a few sampled tokens says more about which tokens were drawn than about the method; the paired
    difference has nearly all of that noise taken out. Without a reference the bare mean has to do.
    """
    positions = np.flatnonzero(np.isfinite(values) & (True if reference is None else np.isfinite(reference)))
    stretches = [part for part in np.array_split(positions, min(groups, max(1, len(positions) // 8))) if part.size]
    x = np.array([part[-1] + 1.0 for part in stretches])
    if reference is None:
        return Curve(row, x, np.array([float(values[part].mean()) for part in stretches]), dots=True)
    line = moving_average(reference)
    y = [float(line[part[-1]] + (values[part] - reference[part]).mean()) for part in stretches]
    return Curve(row, x, np.array(y), dots=True)


def far_rows(results: Results, gap: float = 1.0) -> set[str]:
    """Names of the rows that are so much worse than the model's best that they need a scale of their own.

    Args:
        results: of one model.
        gap: nats per token above the best row.
    """
    rows = results.main_rows
    # recompute was measured on other tokens, so its mean says nothing of how far the rest is from it
    known = [row.nll_full_cache for row in rows if math.isfinite(row.nll_full_cache) and row.method != "recompute"]
    return {row.name for row in rows if known and row.nll_full_cache > min(known) + gap}
