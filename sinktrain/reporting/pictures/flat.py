"""A very long stream: NLL and memory from its first hundredth to its last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinktrain.reporting.numbers import count
from sinktrain.reporting.picture import Key, Picture
from sinktrain.reporting.pictures.common import ticks, unit
from sinktrain.reporting.records import Flat
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def flat(name: str, title: str, stream: Flat) -> Picture:
    """The NLL of one stream with dots of fresh ones, and memory below."""
    said = (
        f"NLL from {stream.nll[0]:.3f} in the first hundredth of {count(stream.tokens)} tokens to {stream.nll[-1]:.3f} "
        f"in the last; memory grows by {stream.growth:+.1%} once the cache is full."
    )
    part = stream.tokens / len(stream.nll)
    data = [
        {
            "token": round((i + 0.5) * part),
            "nll": value,
            "memory_mb": stream.memory[i] if i < len(stream.memory) else "",
        }
        for i, value in enumerate(stream.nll)
    ]
    legend = (Key("one stream", "one"), Key("a stream that began shortly before", "window", dots=True))
    return Picture(name, title, said, lambda: _flat(stream), data, stream.sources, legend)


def _flat(stream: Flat) -> Figure:
    figure = new_figure(290)
    upper, lower = figure.add_axes((0.12, 0.5, 0.83, 0.43)), figure.add_axes((0.12, 0.135, 0.83, 0.255))
    millions = stream.tokens / 1e6
    for axes, values, words in ((upper, stream.nll, "NLL"), (lower, stream.memory, "memory, MB")):
        places = [(i + 0.5) * millions / max(1, len(values)) for i in range(len(values))]
        axes.plot(places, values, color=paint("one"), linewidth=1.6)
        axes.set_ylim(0, 1.12 * max([*values, 1e-9]))
        axes.yaxis.set_major_locator(ticks(4))
        axes.xaxis.set_major_locator(ticks(5))
        unit(axes, words, left=-0.12)
    upper.plot([row[0] / 1e6 for row in stream.drift], [row[2] for row in stream.drift], "o", color=paint("window"),
               markersize=5, clip_on=False)  # fmt: skip
    upper.set_xlim(lower.get_xlim())
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("tokens streamed, millions")
    return figure
