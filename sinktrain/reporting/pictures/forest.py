"""Forest plots: differences behind a verdict, and the PPL of every model and cache (the paper's Table 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinktrain.reporting.numbers import change, exponential, nats, ppl
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.pictures.common import ticks
from sinktrain.reporting.svg import new_figure, paint
from sinktrain.reporting.verdict import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 21
"""Height of one row of the table of PPLs, in units."""


def differences(
    name: str,
    title: str,
    comparisons: list[Comparison],
    margin: float | None,
    sources: tuple[int, ...],
    alone: str = "",
) -> Picture:
    """Paired differences with their intervals, the bound that decides as a tick, the margin as a dashed line."""
    spoken = "; ".join(
        f"{c.words}: {nats(c.difference)}, 95% interval {nats(c.interval[0])} to {nats(c.interval[1])}"
        for c in comparisons
    )
    end = "" if margin is None else f" The margin is {nats(margin)} nats."
    data = [
        {"question": c.question, "of": c.words, "a": c.a, "b": c.b, "difference": c.difference, "low": c.interval[0],
         "high": c.interval[1], "bound": c.bound, "tokens": c.tokens, "margin": margin}
        for c in comparisons
    ]  # fmt: skip
    return Picture(name, title, f"{spoken}.{end}", lambda: _differences(comparisons, margin), data, sources,
                   alone=alone)  # fmt: skip


def _differences(comparisons: list[Comparison], margin: float | None) -> Figure:
    rows = len(comparisons)
    height = 66 + 48 * rows
    figure = new_figure(height)
    axes = figure.add_axes((0.005, 36 / height, 0.99, 1 - 52 / height))
    reach = [value for c in comparisons for value in (*c.interval, c.bound, c.difference) if math.isfinite(value)]
    low, high = min([0.0, *reach]), max([0.0, margin or 0.0, *reach])
    pad = (high - low) * 0.08 or 0.01
    axes.set(xlim=(low - pad, high + pad), ylim=(rows - 0.3, -0.75))
    axes.axvline(0, color=paint("soft"), linewidth=0.8)
    if margin is not None:
        axes.axvline(margin, color=paint("far"), linewidth=1.2, linestyle=(0, (4, 2.5)))
        axes.annotate(
            "margin", (margin, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="right" if margin > high - 3 * pad else "center", color=paint("far"), fontsize=10,
        )  # fmt: skip
    for position, item in enumerate(comparisons):
        _interval(axes, position, item)
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    # none so near an end that half of its number would stand outside
    axes.set_xticks([at for at in ticks(5).tick_values(low, high) if low - pad / 4 <= at <= high + pad / 4])
    axes.set_xlabel("difference in mean NLL (nats)")
    return figure


def _interval(axes: Axes, position: int, item: Comparison) -> None:
    colour = paint("accent")
    axes.plot(item.interval, (position, position), color=colour, linewidth=2.6)
    axes.plot((item.bound, item.bound), (position - 0.12, position + 0.12), color=colour, linewidth=1.6)
    axes.plot(item.difference, position, "o", color=colour, markersize=7)
    # the ground behind the words interrupts the two vertical lines, which would run through them
    ground = {"facecolor": paint("paper"), "edgecolor": "none", "pad": 1.5}
    where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "bbox": ground}
    words = item.words
    axes.text(0, position - 0.36, _cut(words, 40), weight="bold", **where)
    figures = nats(item.difference) if len(words) > 20 else f"{nats(item.difference)} ({change(item.difference)})"
    axes.text(1, position - 0.36, figures, ha="right", **where)


@dataclass(frozen=True)
class Line:
    """One row of the paper's Table 3: the mean NLL of a kind of model under one cache, its 95% interval, its seeds."""

    group: str
    cache: str
    nll: float
    interval: tuple[float, float]
    seeds: tuple[float, ...] = ()


def table(name: str, title: str, lines: list[Line], sources: tuple[int, ...]) -> Picture:
    """PPL with intervals, a block of caches for each kind of model; one dot a seed where there are several."""
    spoken = "; ".join(f"{line.group}, {line.cache}: {ppl(exponential(line.nll))}" for line in lines)
    data = [
        {"group": line.group, "cache": line.cache, "ppl": exponential(line.nll), "low": exponential(line.interval[0]),
         "high": exponential(line.interval[1]), "seeds": " ".join(f"{exponential(s):.6g}" for s in line.seeds)}
        for line in lines
    ]  # fmt: skip
    return Picture(name, title, f"PPL with a full cache. {spoken}.", lambda: _table(lines), data, sources,
                   alone=f"PPL by model and cache: {title}")  # fmt: skip


def _table(lines: list[Line]) -> Figure:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    groups = list(dict.fromkeys(line.group for line in lines))
    height = 40 + LINE * (len(lines) + len(groups))
    figure = new_figure(height)
    axes = figure.add_axes((0.24, 32 / height, 0.555, 1 - 40 / height))
    reach = [exponential(x) for line in lines for x in (line.nll, *line.interval, *line.seeds) if math.isfinite(x)]
    reach = [value for value in reach if math.isfinite(value)] or [1.0, 2.0]
    wide = max(reach) / min(reach) > 3
    room = 1.06 if not wide else (max(reach) / min(reach)) ** 0.05
    limits = (min(reach) / room, max(reach) * room)
    axes.set(xlim=limits, ylim=(len(lines) + len(groups) - 0.4, -0.7), xscale="log" if wide else "linear", yticks=[])
    if wide:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if limits[1] / limits[0] < 30 else (1,), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e5 else ppl(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(ticks(4))
    axes.set_xlabel("PPL, full cache")
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)
    place = -1
    for group in groups:
        place += 1
        axes.text(-0.43, place, _cut(group, 46), transform=axes.get_yaxis_transform(), weight="bold", va="center")
        for line in (line for line in lines if line.group == group):
            place += 1
            _line(axes, place, line)
    return figure


def _line(axes: Axes, place: int, line: Line) -> None:
    colour = paint("window" if line.cache.startswith("0+") else "accent")
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    axes.text(-0.39, place, _cut(line.cache.replace(" original", " orig."), 14), color=paint("soft"), **beside)
    value = exponential(line.nll)
    axes.text(1.37, place, ppl(value), ha="right", **beside)
    if not math.isfinite(value):
        return
    if all(math.isfinite(exponential(end)) for end in line.interval):
        axes.plot([exponential(end) for end in line.interval], (place, place), color=colour, linewidth=2.4)
    if len(line.seeds) > 1:
        axes.plot([exponential(s) for s in line.seeds], [place] * len(line.seeds), "|", color=colour, markersize=9)
    axes.plot(value, place, "D" if len(line.seeds) > 1 else "o", color=colour, markersize=5.5)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
