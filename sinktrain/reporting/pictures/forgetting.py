"""How often a model is right about what it read d tokens ago, by cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sinktrain.reporting.picture import DASHES, Key, Picture
from sinktrain.reporting.pictures.common import TURN, sizes, unit
from sinktrain.reporting.records import Answers
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vPX"


def by_distance(name: str, title: str, answers: Answers) -> Picture:
    """A line a cache: accuracy against the distance in tokens, with 95% intervals."""
    rows = [row for row in answers.rows if row.distance > 0]
    caches = list(dict.fromkeys(row.cache for row in rows))[: len(TURN)]
    said = "; ".join(
        f"{cache}: " + ", ".join(f"{row.accuracy:.0%} at {row.distance:.0f}" for row in rows if row.cache == cache)
        for cache in caches
    )
    data = [
        {"cache": row.cache, "distance": row.distance, "lines": row.lines if row.lines == row.lines else "",
         "asked": row.asked, "right": row.right, "accuracy": row.accuracy, "low": row.interval[0],
         "high": row.interval[1]}
        for row in answers.rows
    ]  # fmt: skip
    legend = tuple(Key(cache, TURN[i]) for i, cache in enumerate(caches))
    draw = lambda: _draw(answers, caches)  # noqa: E731
    return Picture(name, title, f"Right answers by distance in tokens. {said}.", draw, data, answers.sources, legend)


def _draw(answers: Answers, caches: list[str]) -> Figure:
    figure = new_figure(240)
    axes = figure.add_axes((0.115, 0.165, 0.85, 0.75))
    every: set[float] = set()
    for index, cache in enumerate(caches):
        rows = sorted(
            (row for row in answers.rows if row.cache == cache and row.distance > 0), key=lambda row: row.distance
        )
        colour = TURN[index]
        # a little apart, so that intervals of caches at one distance can be told apart
        places = [row.distance * 2 ** (0.05 * (index - (len(caches) - 1) / 2)) for row in rows]
        every |= {row.distance for row in rows}
        axes.plot(
            places, [100 * row.accuracy for row in rows], color=paint(colour), linestyle=DASHES.get(colour, "-"),
            marker=MARKERS[index], markersize=5, linewidth=1.7,
        )  # fmt: skip
        known = [(x, row) for x, row in zip(places, rows, strict=True) if math.isfinite(row.interval[0])]
        axes.vlines(
            [x for x, _ in known], [100 * row.interval[0] for _, row in known],
            [100 * row.interval[1] for _, row in known],
            color=paint(colour), linewidth=1.1,
        )  # fmt: skip
    axes.set_ylim(-3, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    if every:
        sizes(axes, sorted(every))
    axes.set_xlabel("distance, tokens")
    unit(axes, "% right", left=-0.115)
    return figure
