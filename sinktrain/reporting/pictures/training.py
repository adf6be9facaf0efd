"""What happened during training: the loss, and the birth of the sink."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinktrain.reporting.picture import DASHES, Key, Picture
from sinktrain.reporting.pictures.common import TURN, ticks, unit
from sinktrain.reporting.records import Series
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = "_heads"
POINTS = 400


def loss(name: str, title: str, metrics: dict[str, Series], sources: tuple[int, ...]) -> Picture:
    """Training loss as a line, validation loss as points joined by a thin line."""
    losses: dict[str, Series] = {
        column: thin(metrics[column]) for column in ("train/loss", "val/loss") if column in metrics
    }
    said = [f"{column} from {s.value[0]:.3f} to {s.value[-1]:.3f}" for column, s in losses.items()]
    keys = {"train/loss": Key("training", "one"), "val/loss": Key("validation", "window", dots=True)}
    return Picture(
        name, title, f"Loss in nats a token against the step: {'; '.join(said)}.", lambda: _loss(losses),
        _data(losses), sources, tuple(key for column, key in keys.items() if column in losses),
    )  # fmt: skip


def _loss(losses: dict[str, Series]) -> Figure:
    figure = new_figure(230)
    axes = figure.add_axes((0.115, 0.175, 0.835, 0.745))
    train, validation = losses.get("train/loss"), losses.get("val/loss")
    if train is not None:
        axes.plot(train.step, train.value, color=paint("one"), linewidth=1.5)
    if validation is not None:
        axes.plot(validation.step, validation.value, "o-", color=paint("window"), linewidth=1, markersize=5)
    axes.xaxis.set_major_locator(ticks(5, integer=True))
    axes.yaxis.set_major_locator(ticks(5))
    axes.set_xlabel("optimizer step")
    unit(axes, "NLL")
    return figure


def birth(name: str, title: str, metrics: dict[str, Series], sources: tuple[int, ...]) -> Picture | None:
    """Attention to the sink and the first tokens of text by step, and the share of heads that have a sink there.

    None where `SinkMonitor` did not watch the run.
    """
    places = [c.removeprefix("sinks/") for c in metrics if c.startswith("sinks/") and f"{c}{HEADS}" in metrics]
    places = places[: len(TURN)]
    if not places:
        return None
    chosen = {f"sinks/{p}{end}": thin(metrics[f"sinks/{p}{end}"]) for p in places for end in ("", HEADS)}
    said = "; ".join(
        f"{place.replace('_', ' ')}: attention from {chosen[f'sinks/{place}'].value[0]:.2f} to "
        f"{chosen[f'sinks/{place}'].value[-1]:.2f}, heads to {chosen[f'sinks/{place}{HEADS}'].value[-1]:.0%}"
        for place in places
    )
    legend = tuple(Key(place.replace("_", " "), TURN[i]) for i, place in enumerate(places))
    return Picture(name, title, f"{said}.", lambda: _birth(places, chosen), _data(chosen), sources, legend)


def _birth(places: list[str], chosen: dict[str, Series]) -> Figure:
    figure = new_figure(300)
    upper, lower = figure.add_axes((0.1, 0.56, 0.85, 0.37)), figure.add_axes((0.1, 0.125, 0.85, 0.34))
    for axes, end, words in ((upper, "", "attention"), (lower, HEADS, "share of heads above 0.3")):
        for index, place in enumerate(places):
            series = chosen[f"sinks/{place}{end}"]
            axes.plot(
                series.step, series.value, color=paint(TURN[index]), linestyle=DASHES.get(TURN[index], "-"),
                linewidth=2 if index == 0 else 1.5, marker="o" if len(series.step) < 12 else "", markersize=3.5,
            )  # fmt: skip
        axes.set_ylim(-0.02, max(1.02 * max(float(chosen[f"sinks/{p}{end}"].value.max()) for p in places), 0.32))
        axes.xaxis.set_major_locator(ticks(5, integer=True))
        axes.yaxis.set_major_locator(ticks(4))
        unit(axes, words, left=-0.1)
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("optimizer step")
    return figure


def thin(series: Series) -> Series:
    """About `POINTS` of its points, evenly, with the first and the last."""
    step = max(1, -(-len(series.step) // POINTS))
    kept = sorted({*range(0, len(series.step), step), len(series.step) - 1})
    return Series(series.step[kept], series.value[kept])


def _data(columns: dict[str, Series]) -> list[dict[str, object]]:
    return [
        {"column": column, "step": int(step), "value": float(value)}
        for column, series in columns.items()
        for step, value in zip(series.step, series.value, strict=True)
    ]
