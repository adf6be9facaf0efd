"""The pictures of the page, each an inline SVG that can be read at 380 pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sinktrain.reporting.numbers import change, count, nats
from sinktrain.reporting.records import Comparison, Floats, Row, Series
from sinktrain.reporting.series import Curve
from sinktrain.reporting.svg import inline, new_figure, paint, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMING_PAINTS = ("one", "more", "third", "fourth")
DASHES: dict[str, Any] = {
    "more": (0, (3.2, 2.2)),
    "third": (0, (6, 2)),
    "fourth": (0, (1, 1.6)),
    "dense": (0, (1.2, 1.8)),
}


def paints(rows: list[Row]) -> dict[str, str]:
    """The CSS variable of each row's colour, by row name; streaming rows take turns."""
    streaming = [row.name for row in rows if row.method == "streaming"]
    turn = {name: STREAMING_PAINTS[index % len(STREAMING_PAINTS)] for index, name in enumerate(streaming)}
    return {row.name: turn.get(row.name, row.method) for row in rows}


def forest(key: str, title: str, comparisons: list[Comparison], margin: float) -> str:
    """Paired differences with their intervals, the bound that decides as a tick, the margin as a dashed line."""
    rows = len(comparisons)
    height = 66 + 48 * rows
    with style():
        figure = new_figure(height)
        axes = figure.add_axes((0.005, 36 / height, 0.99, 1 - 52 / height))
        reach = [value for c in comparisons for value in (*c.interval, c.bound, c.difference) if math.isfinite(value)]
        low, high = min([0.0, *reach]), max([0.0, margin, *reach])
        pad = (high - low) * 0.08
        axes.set(xlim=(low - pad, high + pad), ylim=(rows - 0.3, -0.75))
        axes.axvline(0, color=paint("soft"), linewidth=0.8)
        axes.axvline(margin, color=paint("far"), linewidth=1.2, linestyle=(0, (4, 2.5)))
        axes.annotate(
            "margin", (margin, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", color=paint("far"), fontsize=10,
        )  # fmt: skip
        for position, item in enumerate(comparisons):
            _interval(axes, position, item)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(_ticks(5))
        axes.set_xlabel("difference in mean NLL (nats)")
        spoken = "; ".join(
            f"{c.a} minus {c.b}: {nats(c.difference)}, 95% interval {nats(c.interval[0])} to {nats(c.interval[1])}"
            for c in comparisons
        )
        return inline(figure, key, title, f"{spoken}. The margin is {nats(margin)} nats.")


def _interval(axes: Axes, position: int, item: Comparison) -> None:
    colour = paint("accent")
    axes.plot(item.interval, (position, position), color=colour, linewidth=2.6)
    axes.plot((item.bound, item.bound), (position - 0.12, position + 0.12), color=colour, linewidth=1.6)
    axes.plot(item.difference, position, "o", color=colour, markersize=7)
    # the ground behind the words interrupts the two vertical lines, which would run through them
    ground = {"facecolor": paint("paper"), "edgecolor": "none", "pad": 1.5}
    where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "bbox": ground}
    axes.text(0, position - 0.36, f"{item.a} minus {item.b}", weight="bold", **where)
    axes.text(1, position - 0.36, f"{nats(item.difference)} ({change(item.difference)})", ha="right", **where)


def stream(key: str, title: str, curves: list[Curve], scale: Scale, colours: dict[str, str], fills_at: int) -> str:
    """NLL along the stream. What is far above the rest has an upper strip, so that the rest stays readable."""
    with style():
        figure = new_figure(300 if scale.far else 250)
        if scale.far:
            main, strip = figure.add_axes((0.115, 0.135, 0.835, 0.55)), figure.add_axes((0.115, 0.72, 0.835, 0.23))
            strip.set(xlim=scale.x, ylim=scale.far, xscale="log")
            strip.tick_params(bottom=False, labelbottom=False)
            strip.spines["bottom"].set_visible(False)
            strip.set_yticks(_clear_of_break(scale.far))
            _break_marks(main, strip)
        else:
            main, strip = figure.add_axes((0.115, 0.16, 0.835, 0.77)), None
        main.set(xlim=scale.x, ylim=scale.near, xscale="log")
        main.yaxis.set_major_locator(_ticks(5))
        for axes in (main, strip):
            if axes is not None:
                axes.axvline(fills_at, color=paint("soft"), linewidth=0.9, linestyle=(0, (2, 2)))
                for curve in curves:
                    _draw(axes, curve, colours[curve.row.name])
        _octaves(main, scale.x)
        main.set_xlabel("text tokens so far")
        top = strip or main
        top.annotate(
            "cache full", (fills_at, 1), xycoords=("data", "axes fraction"), xytext=(-3, 3),
            textcoords="offset points", ha="center", color=paint("soft"), fontsize=10,
        )  # fmt: skip
        top.text(-0.13, 1.045, "NLL", transform=top.transAxes, color=paint("soft"), fontsize=10)
        ends = "; ".join(f"{c.row.name} ends at {c.y[-1]:.2f}" for c in curves)
        return inline(figure, key, title, f"NLL in nats against text tokens so far. {ends}.")


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
    low, high = float(values.min()), float(values.max())
    pad = max((high - low) * 0.08, 0.02)
    return low - pad, high + pad


def _draw(axes: Axes, curve: Curve, colour: str) -> None:
    if curve.dots:
        axes.plot(curve.x, curve.y, "o", color=paint(colour), markersize=4.6, markeredgewidth=0)
    else:
        wide = 1.3 if colour in DASHES else 2.0
        axes.plot(curve.x, curve.y, color=paint(colour), linewidth=wide, linestyle=DASHES.get(colour, "-"))


def _clear_of_break(limits: tuple[float, float]) -> list[float]:
    """A few ticks for the upper strip, none of them so low that its number would stand on the break marks."""
    low, high = limits
    return [tick for tick in _ticks(3).tick_values(low, high) if low + 0.15 * (high - low) <= tick <= high]


def _break_marks(lower: Axes, upper: Axes) -> None:
    """Two short strokes where the vertical scale changes."""
    mark: dict[str, Any] = {
        "marker": [(-1, -0.6), (1, 0.6)],
        "markersize": 8,
        "linestyle": "none",
        "color": paint("soft"),
        "mew": 0.9,
    }
    lower.plot([0], [1], transform=lower.transAxes, clip_on=False, **mark)
    upper.plot([0], [0], transform=upper.transAxes, clip_on=False, **mark)


def _octaves(axes: Axes, limits: tuple[float, float]) -> None:
    first, last = math.ceil(math.log2(limits[0])), math.floor(math.log2(limits[1]))
    step = max(1, math.ceil((last - first) / 6))
    ticks = [2**power for power in range(last, first - 1, -step)]
    axes.set_xticks(ticks, [count(tick) for tick in ticks])
    axes.minorticks_off()


def loss(key: str, title: str, metrics: dict[str, Series]) -> str:
    """Training loss as a line, validation loss as points joined by a thin line."""
    with style():
        figure = new_figure(230)
        axes = figure.add_axes((0.115, 0.175, 0.835, 0.75))
        train, validation = metrics.get("train/loss"), metrics.get("val/loss")
        if train is not None:
            axes.plot(train.step, train.value, color=paint("one"), linewidth=1.5)
        if validation is not None:
            axes.plot(validation.step, validation.value, "o-", color=paint("window"), linewidth=1, markersize=5)
        axes.xaxis.set_major_locator(_ticks(5, integer=True))
        axes.yaxis.set_major_locator(_ticks(5))
        axes.set_xlabel("optimizer step")
        axes.text(-0.13, 1.04, "NLL", transform=axes.transAxes, color=paint("soft"), fontsize=10)
        said = [f"{name} from {s.value[0]:.3f} to {s.value[-1]:.3f}" for name, s in metrics.items()]
        return inline(figure, key, title, f"Loss in nats a token against the step: {'; '.join(said)}.")


def attention(key: str, title: str, share: Floats, sink_metric: float) -> str:
    """Attention to position 0: a cell for each layer (across) and head (down), on the scale 0 to 1."""
    layers, heads = share.shape
    with style():
        figure = new_figure(190)
        axes = figure.add_axes((0.09, 0.215, 0.9, 0.765))
        axes.imshow(share.T, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="upper")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(_ticks(7, integer=True))
        axes.yaxis.set_major_locator(_ticks(5, integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("head", labelpad=2)
        said = f"{layers} layers by {heads} heads; mean {share.mean():.2f}; {sink_metric:.0%} of the heads above 0.3."
        return inline(figure, key, title, said)


def attention_scale(key: str) -> str:
    """The colour scale that the attention pictures share, with Gu et al.'s threshold of 0.3 among its ticks."""
    with style():
        figure = new_figure(44)
        axes = figure.add_axes((0.09, 0.62, 0.9, 0.3))
        axes.imshow(np.linspace(0, 1, 256)[None], cmap="viridis", aspect="auto", extent=(0, 1, 0, 1))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.set_xticks([0, 0.3, 0.5, 1], ["0", "0.3", "0.5", "1"])
        return inline(figure, key, "Colour scale", "From 0, dark, to 1, bright.")


def _ticks(number: int, **options: Any) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=number, steps=[1, 2, 5, 10], **options)
