"""NLL along the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sinktrain.reporting.picture import DASHES, Key, Picture
from sinktrain.reporting.pictures.common import mark, octaves, ticks, unit
from sinktrain.reporting.series import Curve
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Scale:
    """The axis limits that all stream panels share: `x`, `near` for most rows, `far` for each panel's `far_names`."""

    def __init__(self, panels: list[list[Curve]], far_names: list[set[str]]) -> None:
        every = [
            (curve, curve.row.name in names) for panel, names in zip(panels, far_names, strict=True) for curve in panel
        ]
        xs = np.concatenate([curve.x for curve, _ in every])
        self.x = (float(xs.min()), float(xs.max()) * 1.04)  # room for a dot at the end
        # the first tokens of a stream have little context and a high NLL for every row: they do not set the scale
        settled = self.x[0] * 4
        near = [curve.y[curve.x >= settled] for curve, is_far in every if not is_far]
        far = [curve.y[curve.x >= settled] for curve, is_far in every if is_far]
        self.near = _limits(np.concatenate(near or far))
        self.far: tuple[float, float] | None = None
        if far and near:
            top = float(np.concatenate(far).max())
            self.far = (self.near[1], max(top * 1.04, self.near[1] + 0.1))


def _limits(values: Any) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    pad = max((high - low) * 0.08, 0.02)
    return low - pad, high + pad


def stream(
    name: str, title: str, curves: list[Curve], scale: Scale, legend: tuple[Key, ...], fills_at: int,
    sources: tuple[int, ...],
) -> Picture:  # fmt: skip
    """NLL along the stream. What is far above the rest has an upper strip, so that the rest stays readable.

    Args:
        name: of its files.
        title: above it.
        curves: one a row.
        scale: of all panels.
        legend: the colour of each row.
        fills_at: the text token at which the cache is full.
        sources: of the data.
    """
    ends = "; ".join(f"{c.row.name} ends at {c.y[-1]:.2f}" for c in curves)
    data = [
        {"cache": c.row.name, "tokens": int(x), "nll": round(float(y), 5)}
        for c in curves
        for x, y in zip(c.x, c.y, strict=True)
    ]
    colours = {key.name: key.paint for key in legend}
    return Picture(
        name, title, f"NLL in nats against text tokens so far. {ends}.",
        lambda: _stream(curves, scale, colours, fills_at), data, sources, legend,
        alone=f"NLL along the stream: {title}",
    )  # fmt: skip


def _stream(curves: list[Curve], scale: Scale, colours: dict[str, str], fills_at: int) -> Figure:
    figure = new_figure(300 if scale.far else 250)
    if scale.far:
        main, strip = figure.add_axes((0.115, 0.135, 0.835, 0.55)), figure.add_axes((0.115, 0.72, 0.835, 0.215))
        strip.set(xlim=scale.x, ylim=scale.far, xscale="log")
        strip.tick_params(bottom=False, labelbottom=False)
        strip.spines["bottom"].set_visible(False)
        strip.set_yticks(_clear_of_break(scale.far))
        _break_marks(main, strip)
    else:
        main, strip = figure.add_axes((0.115, 0.16, 0.835, 0.765)), None
    main.set(xlim=scale.x, ylim=scale.near, xscale="log")
    main.yaxis.set_major_locator(ticks(5))
    for axes in (main, strip):
        if axes is not None:
            axes.axvline(fills_at, color=paint("soft"), linewidth=0.9, linestyle=(0, (2, 2)))
            for curve in curves:
                _draw(axes, curve, colours[curve.row.name])
    octaves(main, scale.x)
    main.set_xlabel("text tokens so far")
    top = strip or main
    mark(top, fills_at, "cache full", shift=-3)
    unit(top, "NLL")
    return figure


def _draw(axes: Axes, curve: Curve, colour: str) -> None:
    if curve.dots:
        axes.plot(curve.x, curve.y, "o", color=paint(colour), markersize=4.6, markeredgewidth=0)
    else:
        wide = 1.3 if colour in DASHES else 2.0
        axes.plot(curve.x, curve.y, color=paint(colour), linewidth=wide, linestyle=DASHES.get(colour, "-"))


def _clear_of_break(limits: tuple[float, float]) -> list[float]:
    """A few ticks for the upper strip, none of them so low that its number would stand on the break marks."""
    low, high = limits
    return [tick for tick in ticks(3).tick_values(low, high) if low + 0.15 * (high - low) <= tick <= high]


def _break_marks(lower: Axes, upper: Axes) -> None:
    """Two short strokes where the vertical scale changes."""
    stroke: dict[str, Any] = {
        "marker": [(-1, -0.6), (1, 0.6)],
        "markersize": 8,
        "linestyle": "none",
        "color": paint("soft"),
        "mew": 0.9,
    }
    lower.plot([0], [1], transform=lower.transAxes, clip_on=False, **stroke)
    upper.plot([0], [0], transform=upper.transAxes, clip_on=False, **stroke)
