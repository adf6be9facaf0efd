"""PPL by cache size and number of sinks, as a heat map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sinktrain.reporting.numbers import count, ppl
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.records import Results
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DARK, BRIGHT = "#000000", "#ffffff"
"""The ink on a bright and on a dark cell; with any less, cells of a middling brightness could not be read."""


def grid_of(results: Results) -> dict[tuple[int, int], float]:
    """PPL with a full cache by (sinks, size), of the rows under the rule of the results."""
    return {
        row.sinks_and_size: row.ppl_full_cache
        for row in results.rows
        if row.sinks_and_size is not None and row.rule == results.rule and row.name == row.name.split()[0]
    }


def heat(name: str, title: str, results: Results) -> Picture | None:
    """A cell for each cache size (across) and number of sinks (down); None for caches of one size alone."""
    cells = grid_of(results)
    if len({size for _, size in cells}) < 2:
        return None
    spoken = "; ".join(f"{sinks}+{size - sinks}: {ppl(value)}" for (sinks, size), value in cells.items())
    data = [{"sinks": sinks, "size": size, "ppl_full_cache": value} for (sinks, size), value in cells.items()]
    return Picture(name, title, f"PPL with a full cache. {spoken}.", lambda: _heat(cells), data, results.sources[:1],
                   alone=f"PPL by cache size and sinks: {title}")  # fmt: skip


def _heat(cells: dict[tuple[int, int], float]) -> Figure:
    import matplotlib as mpl
    from matplotlib.colors import LogNorm, to_hex
    from matplotlib.patches import Rectangle

    sinks, sizes = sorted({s for s, _ in cells}), sorted({c for _, c in cells})
    known = [value for value in cells.values() if math.isfinite(value)] or [1.0]
    norm, colours = LogNorm(min(known), max(max(known), min(known) * 1.001)), mpl.colormaps["viridis_r"]
    height = 52 + 34 * len(sinks)
    figure = new_figure(height)
    axes = figure.add_axes((0.12, 44 / height, 0.87, 1 - 50 / height))
    for (number, size), value in cells.items():
        place = sizes.index(size), sinks.index(number)
        ground = colours(norm(value)) if math.isfinite(value) else (0.5, 0.5, 0.5, 1)
        axes.add_patch(Rectangle((place[0] + 0.02, place[1] + 0.04), 0.96, 0.92, facecolor=to_hex(ground), linewidth=0))
        ink = DARK if _luminance(ground) > 0.179 else BRIGHT
        axes.text(place[0] + 0.5, place[1] + 0.5, ppl(value), color=ink, ha="center", va="center",
                  fontsize=10.5 if len(sizes) < 7 else 9.2)  # fmt: skip
    axes.set(xlim=(0, len(sizes)), ylim=(len(sinks), 0))
    axes.set_xticks([i + 0.5 for i in range(len(sizes))], [count(size) for size in sizes])
    axes.set_yticks([i + 0.5 for i in range(len(sinks))], [str(number) for number in sinks])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("cache size", color=paint("soft"))
    axes.set_ylabel("sinks kept", labelpad=3)
    return figure


def _luminance(colour: tuple[float, float, float, float]) -> float:
    """Relative luminance as WCAG defines it; dark ink reads better above 0.18."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
