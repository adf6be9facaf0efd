"""Attention maps by layer (StreamingLLM, figures 2 and 7), and attention to position 0 along a long text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sinktrain.reporting.diagnosis import Diagnosis, Maps
from sinktrain.reporting.numbers import MINUS
from sinktrain.reporting.picture import DASHES, Key, Picture
from sinktrain.reporting.pictures.common import TURN, octaves, ticks, unit
from sinktrain.reporting.svg import new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINEST = 96
"""Rows of a map that is drawn; finer ones are averaged down."""


def maps(name: str, title: str, diagnosis: Diagnosis, others: list[Diagnosis]) -> Picture:
    """Logits above and probabilities below, by layer, from query (down) to key (across), as means over heads.

    Args:
        name: of its files.
        title: above it.
        diagnosis: whose maps.
        others: drawn on the same scales.
    """
    limits = _limits([diagnosis, *others])
    layers = diagnosis.layers
    first = [float(diagnosis.probabilities[layer][1:, 0].mean()) for layer in layers]
    said = ", ".join(f"{share:.2f} in layer {layer}" for layer, share in zip(layers, first, strict=True))
    data = {
        "layers": layers,
        "logits": [_plain(diagnosis.logits[layer]) for layer in layers],
        "probabilities": [_plain(diagnosis.probabilities[layer]) for layer in layers],
    }
    note = f"logits {limits[0]:.1f} to {limits[1]:.1f}, probabilities 0 to 1".replace("-", MINUS)
    return Picture(
        name, title, f"Mean attention of the later queries to position 0: {said}.", lambda: _maps(diagnosis, limits),
        data, diagnosis.sources[1:], note=note, alone=f"Attention maps: {title}",
    )  # fmt: skip


def _limits(every: list[Diagnosis]) -> tuple[float, float]:
    values = np.concatenate([each.logits[each.layers].ravel() for each in every])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [1, 99.5]) if values.size else (0.0, 1.0)
    return float(low), max(float(high), float(low) + 1e-6)


def _maps(diagnosis: Diagnosis, limits: tuple[float, float]) -> Figure:
    layers = diagnosis.layers
    across = (0.93 - 0.02 * (len(layers) - 1)) / max(len(layers), 4)
    figure = new_figure(230)
    tall = across * 348 / 230
    for column, layer in enumerate(layers):
        left = 0.065 + column * (across + 0.02)
        for row, (found, scale) in enumerate(((diagnosis.logits, limits), (diagnosis.probabilities, (0.0, 1.0)))):
            axes = figure.add_axes((left, 0.52 - row * 0.46, across, tall))
            axes.imshow(_coarse(found[layer]), cmap="viridis", vmin=scale[0], vmax=scale[1], aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"layer {layer}", fontsize=10, color=paint("ink"), pad=4)
            if column == 0:
                axes.set_ylabel("logits" if row == 0 else "probabilities", fontsize=10, labelpad=4)
    return figure


def _coarse(square: Maps) -> Maps:
    """At most `FINEST` rows; NaN, above the diagonal, stays NaN and is not drawn."""
    square = np.where(np.triu(np.ones(square.shape, dtype=bool), 1), np.nan, square)
    step = -(-len(square) // FINEST)
    if step == 1:
        return square
    kept = len(square) // step * step
    blocks = square[:kept, :kept].reshape(kept // step, step, kept // step, step).swapaxes(1, 2)
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0).sum(axis=(2, 3))
    return np.where(known.any(axis=(2, 3)), total / np.maximum(known.sum(axis=(2, 3)), 1), np.nan)


def _plain(square: Maps) -> list[list[float | None]]:
    return [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in _coarse(square)]


def along(name: str, title: str, diagnosis: Diagnosis) -> Picture | None:
    """Attention to position 0 by where the query stands, in full attention and as a stream; None if not measured."""
    names = [each for each in diagnosis.curves if len(diagnosis.curves[each]) == len(diagnosis.along) > 1]
    if not names:
        return None
    said = "; ".join(f"{each}: {diagnosis.curves[each][0]:.2f} to {diagnosis.curves[each][-1]:.2f}" for each in names)
    data = [
        {"history": each, "position": place, "attention": value}
        for each in names
        for place, value in zip(diagnosis.along, diagnosis.curves[each], strict=True)
    ]
    legend = tuple(Key(each, TURN[i]) for i, each in enumerate(names))
    draw = lambda: _along(diagnosis, names)  # noqa: E731
    return Picture(name, title, f"Mean attention to position 0. {said}.", draw, data, diagnosis.sources[:1], legend,
                   alone=f"Attention to position 0 along a text: {title}")  # fmt: skip


def _along(diagnosis: Diagnosis, names: list[str]) -> Figure:
    figure = new_figure(210)
    axes = figure.add_axes((0.1, 0.19, 0.86, 0.71))
    for index, name in enumerate(names):
        colour = TURN[index]
        axes.plot(diagnosis.along, diagnosis.curves[name], color=paint(colour), linestyle=DASHES.get(colour, "-"))
    axes.set(xscale="log", ylim=(0, 1.02))
    octaves(axes, (max(1.0, diagnosis.along[0]), diagnosis.along[-1]))
    axes.yaxis.set_major_locator(ticks(5))
    axes.set_xlabel("position of the query")
    unit(axes, "attention to position 0", left=-0.1)
    return figure
