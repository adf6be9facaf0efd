"""A picture: how it is drawn, what it says in words, the numbers it shows, and where they come from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain.reporting.svg import THEMES, Theme, inline, paint, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHES: dict[str, Any] = {
    "more": (0, (3.2, 2.2)),
    "third": (0, (6, 2)),
    "fourth": (0, (1, 1.6)),
    "dense": (0, (1.2, 1.8)),
}
"""Lines are told apart by their dash too, not by colour alone."""


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a line in the colour and dash of `paint`, or a dot."""

    name: str
    paint: str
    dots: bool = False

    @property
    def dash(self) -> str:
        """The dash as SVG has it."""
        return " ".join(str(2 * part) for part in DASHES[self.paint][1]) if self.paint in DASHES else "none"


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Args:
        name: of its files, and the prefix of its ids on the page.
        title: above it.
        description: what a reader who does not see it should know.
        draw: makes the figure; called inside `style`, once for each theme.
        data: what it shows: a list of records of one form (a CSV file), or anything else JSON can hold.
        sources: numbers of the sources of its data.
        legend: above it.
        note: small print beside the title.
        alone: the title where no page is around it.
    """

    name: str
    title: str
    description: str
    draw: Callable[[], Figure]
    data: Any
    sources: tuple[int, ...] = ()
    legend: tuple[Key, ...] = ()
    note: str = ""
    alone: str = ""

    @property
    def svg(self) -> Any:
        """The `<svg>` element for the page, as markup."""
        from markupsafe import Markup

        with style():
            return Markup(inline(self.draw(), self.name, self.title, self.description))

    def files(self) -> dict[str, bytes]:
        """The picture and its data as files: NAME-light.svg, NAME-dark.svg, the same as PNG, NAME.csv or NAME.json."""
        found = {}
        for theme in THEMES:
            for kind, content in self._alone(theme).items():
                found[f"{self.name}-{theme}.{kind}"] = content
        if isinstance(self.data, list):
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.data[0]) if self.data else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.data)
            return found | {f"{self.name}.csv": text.getvalue().encode()}
        return found | {f"{self.name}.json": (json.dumps(self.data) + "\n").encode()}

    def write(self, folder: Path) -> None:
        """Writes `files` into `folder`."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    def _alone(self, theme: Theme) -> dict[str, bytes]:
        """The figure as `svg` and `png`, with its title and legend, on the ground of its theme."""
        found = {}
        with style(theme):
            figure = self.draw()
            _head(figure, self)
            for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
                buffer = io.BytesIO()
                figure.savefig(
                    buffer, format=kind, dpi=180, metadata=metadata, facecolor=paint("paper"), bbox_inches="tight",
                    pad_inches=0.15,
                )  # fmt: skip
                found[kind] = buffer.getvalue()
        return found


def _head(figure: Figure, picture: Picture) -> None:
    """The title and the legend, which the page writes itself, above the figure; the file grows by them."""
    from matplotlib.lines import Line2D

    height = figure.get_figheight() * 72
    above = 1 + 8 / height
    if picture.legend:
        handles = [
            Line2D([], [], color=paint(key.paint), marker="o", linestyle="none", markersize=5)
            if key.dots
            else Line2D([], [], color=paint(key.paint), linewidth=2, linestyle=DASHES.get(key.paint, "-"))
            for key in picture.legend
        ]
        columns = 3 if max(len(key.name) for key in picture.legend) < 16 else 1
        made = figure.legend(
            handles, [key.name for key in picture.legend], loc="lower left", bbox_to_anchor=(0, above), ncols=columns,
            frameon=False, fontsize=10, borderpad=0, borderaxespad=0, handlelength=2.4,
        )  # fmt: skip
        above += 16 * -(-len(made.get_texts()) // columns) / height + 6 / height
    title = picture.alone or picture.title
    if picture.note:
        figure.text(0, above, picture.note, color=paint("soft"), fontsize=9.5, va="bottom")
        above += 15 / height
    figure.text(0, above, title, weight="bold", fontsize=11, va="bottom", wrap=False)
