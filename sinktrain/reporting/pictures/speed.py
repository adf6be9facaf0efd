"""Latency and memory of a decoded token by cache size (StreamingLLM, figure 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sinktrain.reporting.picture import DASHES, Key, Picture
from sinktrain.reporting.pictures.common import sizes, unit
from sinktrain.reporting.records import Speed
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "streaming": ("one", "o", 11, "streaming, cache of ours"),
    "recompute": ("window", "s", 5, "recompute of a window of C"),
    "static": ("recompute", "^", 4.5, "transformers, StaticCache"),
    "dense": ("dense", "D", 7, "transformers, DynamicCache"),
}
"""Colour, marker, its size, and name. The larger ones are rings, so that those of methods which cost the same are seen
one in another."""
FILLED = 5


def latency(name: str, speed: Speed) -> Picture:
    """Median milliseconds a token with quartiles."""
    return _picture(name, "Latency", speed, 1, "ms a token")


def memory(name: str, speed: Speed) -> Picture:
    """MiB beside the weights: the cache and what a step works with."""
    return _picture(name, "Memory", speed, 4, "MiB beside the weights")


def _picture(name: str, title: str, speed: Speed, column: int, words: str) -> Picture:
    methods = [method for method in LOOKS if method in speed.methods]
    data = [
        {"method": method, "cache_size": row[0], "median_ms": row[1], "low_quartile_ms": row[2],
         "high_quartile_ms": row[3], "mib": row[4]}
        for method in methods
        for row in speed.methods[method]
    ]  # fmt: skip
    said = "; ".join(
        f"{method}: {speed.methods[method][0][column]:.3g} at {speed.methods[method][0][0]:.0f} to "
        f"{speed.methods[method][-1][column]:.3g} at {speed.methods[method][-1][0]:.0f}"
        for method in methods
    )
    legend = tuple(Key(LOOKS[method][3], LOOKS[method][0]) for method in methods)
    draw = lambda: _draw(speed, methods, column, words)  # noqa: E731
    return Picture(name, title, f"{words} by cache size. {said}.", draw, data, speed.sources, legend, speed.title)


def _draw(speed: Speed, methods: list[str], column: int, words: str) -> Figure:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = new_figure(240)
    axes = figure.add_axes((0.13, 0.165, 0.83, 0.755))
    for method in reversed(methods):  # the first is drawn last, over the others
        colour, marker, across, _ = LOOKS[method]
        rows = speed.methods[method]
        look: dict[str, Any] = {"color": paint(colour), "marker": marker, "markersize": across, "markeredgewidth": 1.4,
                                "fillstyle": "full" if across <= FILLED else "none"}  # fmt: skip
        places = [row[0] for row in rows]
        axes.plot(places, [row[column] for row in rows], linestyle=DASHES.get(colour, "-"), **look)
        if column == 1:
            axes.vlines(places, [row[2] for row in rows], [row[3] for row in rows], color=look["color"], linewidth=1.2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    sizes(axes, sorted({row[0] for method in methods for row in speed.methods[method]}))
    axes.set_xlabel("tokens in the cache")
    axes.margins(x=0.06, y=0.12)
    unit(axes, words)
    return figure
