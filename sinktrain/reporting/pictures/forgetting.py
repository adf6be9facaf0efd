"""How well a model knows what it read d tokens ago, by cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sinktrain.reporting.picture import DASHES, Key, Picture
from sinktrain.reporting.pictures.common import TURN, sizes, ticks, unit
from sinktrain.reporting.records import Answer, Answers
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX"
Point = tuple[float, tuple[float, float]]


def by_distance(name: str, title: str, answers: Answers) -> Picture:
    """A line a cache: the share of right answers against the distance in tokens, with 95% intervals."""

    def point(row: Answer) -> Point:
        return 100 * row.accuracy, (100 * row.interval[0], 100 * row.interval[1])

    def scale(axes: Axes) -> None:
        axes.set_ylim(-3, 103)
        axes.set_yticks([0, 25, 50, 75, 100])

    said = _said(answers, lambda row: f"{row.accuracy:.0%}")
    draw = lambda: _draw(answers, point, scale, "% right")  # noqa: E731
    return Picture(name, title, f"Right answers by distance. {said}.", draw, _data(answers), answers.sources,
                   _legend(answers))  # fmt: skip


def gain(name: str, title: str, answers: Answers) -> Picture:
    """A line a cache: by how many nats what was said is likelier than what never was, against the distance."""

    def scale(axes: Axes) -> None:
        axes.axhline(0, color=paint("soft"), linewidth=0.8)
        axes.yaxis.set_major_locator(ticks(5))

    said = _said(answers, lambda row: f"{row.gain:.2f}")
    draw = lambda: _draw(answers, lambda row: (row.gain, row.gain_interval), scale, "nats gained")  # noqa: E731
    return Picture(name, title, f"Nats gained by distance. {said}.", draw, _data(answers), answers.sources,
                   _legend(answers))  # fmt: skip


def _caches(answers: Answers) -> list[str]:
    return list(dict.fromkeys(row.cache for row in answers.rows if row.distance > 0))[: len(TURN)]


def _legend(answers: Answers) -> tuple[Key, ...]:
    return tuple(Key(cache, TURN[i]) for i, cache in enumerate(_caches(answers)))


def _said(answers: Answers, words: Callable[[Answer], str]) -> str:
    return "; ".join(
        f"{cache}: " + ", ".join(f"{words(row)} at {row.distance:.0f}" for row in answers.rows if row.cache == cache)
        for cache in _caches(answers)
    )


def _data(answers: Answers) -> list[dict[str, Any]]:
    found = []
    for row in answers.rows:
        record = {"cache": row.cache, "distance": row.distance, "lines": row.lines, "asked": row.asked,
                  "right": row.right, "accuracy": row.accuracy, "low": row.interval[0], "high": row.interval[1],
                  "gain": row.gain, "gain_low": row.gain_interval[0], "gain_high": row.gain_interval[1]}  # fmt: skip
        found.append({name: "" if value != value else value for name, value in record.items()})
    return found


def _draw(
    answers: Answers, point: Callable[[Answer], Point], scale: Callable[[Axes], None], words: str
) -> Figure:  # fmt: skip
    figure = new_figure(240)
    axes = figure.add_axes((0.115, 0.165, 0.85, 0.75))
    caches = _caches(answers)
    every: set[float] = set()
    for index, cache in enumerate(caches):
        rows = sorted((r for r in answers.rows if r.cache == cache and r.distance > 0), key=lambda row: row.distance)
        colour = TURN[index]
        # a little apart, so that intervals of caches at one distance can be told apart
        places = [row.distance * 2 ** (0.05 * (index - (len(caches) - 1) / 2)) for row in rows]
        every |= {row.distance for row in rows}
        axes.plot(
            places, [point(row)[0] for row in rows], color=paint(colour), linestyle=DASHES.get(colour, "-"),
            marker=MARKERS[index], markersize=5, linewidth=1.7,
        )  # fmt: skip
        known = [(x, point(row)[1]) for x, row in zip(places, rows, strict=True) if math.isfinite(point(row)[1][0])]
        axes.vlines([x for x, _ in known], [p[0] for _, p in known], [p[1] for _, p in known], color=paint(colour),
                    linewidth=1.1)  # fmt: skip
    scale(axes)
    if every:
        sizes(axes, sorted(every))
    axes.set_xlabel("distance, tokens")
    unit(axes, words, left=-0.115)
    return figure
