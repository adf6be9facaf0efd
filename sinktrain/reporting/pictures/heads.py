"""Attention to position 0 by layer and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sinktrain.reporting.picture import Picture
from sinktrain.reporting.pictures.common import ticks
from sinktrain.reporting.records import Floats
from sinktrain.reporting.svg import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heads(name: str, title: str, share: Floats, sink_metric: float, sources: tuple[int, ...]) -> Picture:
    """A cell for each layer (across) and head (down), on the scale 0 to 1."""
    layers, number = share.shape
    said = f"{layers} layers by {number} heads; mean {share.mean():.2f}; {sink_metric:.0%} of the heads above 0.3."
    note = f"{sink_metric:.0%} of the heads above 0.3"
    data = {"layer_by_head": np.round(share.astype(float), 4).tolist(), "sink_metric": sink_metric}
    return Picture(name, title, said, lambda: _heads(share), data, sources, note=note,
                   alone=f"Attention to position 0, {title}: 0 dark, 1 bright")  # fmt: skip


def _heads(share: Floats) -> Figure:
    figure = new_figure(190)
    axes = figure.add_axes((0.09, 0.215, 0.9, 0.765))
    axes.imshow(share.T, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="upper")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(ticks(7, integer=True))
    axes.yaxis.set_major_locator(ticks(5, integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel("head", labelpad=2)
    return figure


def scale(name: str) -> Picture:
    """The colour scale that the pictures of heads share, with Gu et al.'s threshold of 0.3 among its ticks."""
    return Picture(name, "Colour scale", "From 0, dark, to 1, bright.", _scale, {"from": 0, "to": 1})


def _scale() -> Figure:
    figure = new_figure(44)
    axes = figure.add_axes((0.09, 0.62, 0.9, 0.3))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap="viridis", aspect="auto", extent=(0, 1, 0, 1))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([0, 0.3, 0.5, 1], ["0", "0.3", "0.5", "1"])
    return figure
