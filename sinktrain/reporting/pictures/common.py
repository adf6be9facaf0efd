"""What the pictures share: ticks, colours in turn, labels on both sides of a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sinktrain.reporting.numbers import count
from sinktrain.reporting.records import Row
from sinktrain.reporting.svg import paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMING_PAINTS = ("one", "more", "third", "fourth")
TURN = ("one", "window", "more", "recompute", "third", "fourth", "dense")
"""Colours of lines of one kind, in turn."""


def ticks(number: int, **options: Any) -> Any:
    """A locator of about `number` round values."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=number, steps=[1, 2, 5, 10], **options)


def paints(rows: list[Row]) -> dict[str, str]:
    """The CSS variable of each row's colour, by row name; streaming rows take turns."""
    streaming = [row.name for row in rows if row.method == "streaming"]
    turn = {name: STREAMING_PAINTS[index % len(STREAMING_PAINTS)] for index, name in enumerate(streaming)}
    return {row.name: turn.get(row.name, row.method) for row in rows}


def octaves(axes: Axes, limits: tuple[float, float], most: int = 6) -> None:
    """Powers of two on a logarithmic horizontal axis."""
    first, last = math.ceil(math.log2(limits[0])), math.floor(math.log2(limits[1]))
    step = max(1, math.ceil((last - first) / most))
    places = [2**power for power in range(last, first - 1, -step)]
    axes.set_xticks(places, [count(place) for place in places])
    axes.minorticks_off()


def sizes(axes: Axes, values: list[float]) -> None:
    """Ticks at the measured values of a logarithmic horizontal axis, no two so near that their numbers would touch."""
    axes.set_xscale("log", base=2)
    kept: list[float] = []
    apart = max(math.log2(values[-1] / values[0]) / 6, 0.2) if values[0] > 0 else 1.0
    for value in sorted(values, reverse=True):
        if not kept or math.log2(kept[-1] / value) >= apart:
            kept.append(value)
    axes.set_xticks(kept, [count(value) for value in kept])
    axes.minorticks_off()


def unit(axes: Axes, text: str, left: float = -0.13, above: float = 1.045) -> None:
    """The name of the vertical axis, above its end, where it takes no width."""
    axes.text(left, above, text, transform=axes.transAxes, color=paint("soft"), fontsize=10)


def mark(axes: Axes, place: float, text: str, shift: float = 0) -> None:
    """A dotted vertical line with a word above it."""
    axes.axvline(place, color=paint("soft"), linewidth=0.9, linestyle=(0, (2, 2)))
    axes.annotate(
        text, (place, 1), xycoords=("data", "axes fraction"), xytext=(shift, 3), textcoords="offset points",
        ha="center", color=paint("soft"), fontsize=10,
    )  # fmt: skip
