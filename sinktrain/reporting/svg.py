"""Matplotlib figures as inline SVG whose colours follow the page, or in the page's light or dark colours alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The page's CSS variables. Matplotlib wants a colour and not a variable, so each variable has a stand-in that no
# figure uses otherwise, #0000NN, and `inline` puts the variable in its place.
PAINTS = (
    "ink",
    "soft",
    "rule",
    "paper",
    "far",
    "accent",
    "window",
    "one",
    "more",
    "third",
    "fourth",
    "dense",
    "recompute",
)

# One unit of a figure is about one CSS pixel where the page is 380 pixels wide; wider pages enlarge it.
UNITS_PER_INCH = 72
WIDTH = 348


Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
STYLE_SHEET = Path(__file__).with_name("style.css")
_THEME: ContextVar[Theme | None] = ContextVar("theme", default=None)


def paint(name: str) -> str:
    """The stand-in for the CSS variable `--name`; inside `style("light")` or `style("dark")` its colour itself."""
    theme = _THEME.get()
    return f"#0000{PAINTS.index(name) + 1:02x}" if theme is None else palette(theme)[name]


@cache
def palette(theme: Theme) -> dict[str, str]:
    """The colours of the style sheet, which is where they are chosen: CSS variable to `#rrggbb`."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE_SHEET.read_text(encoding="utf-8"), flags=re.DOTALL)[:2]
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", light if theme == "light" else dark))


def new_figure(height: int) -> Figure:
    """An empty figure of `WIDTH` by `height` units, one unit a point."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / UNITS_PER_INCH, height / UNITS_PER_INCH), facecolor="none")


@contextmanager
def style(theme: Theme | None = None) -> Iterator[None]:
    """The look that all figures share; figures are made and written inside this block.

    Args:
        theme: for colours that stand alone; by default they follow the page.
    """
    import matplotlib as mpl

    token = _THEME.set(theme)
    ink, soft, rule = paint("ink"), paint("soft"), paint("rule")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: searchable, in the page's font, sharp at any size
        "svg.hashsalt": "sinktrain",  # the same figure gives the same file
        "text.parse_math": False,  # a name may hold a dollar sign
        "font.size": 10.5,
        "text.color": ink,
        "axes.facecolor": "none",
        "axes.edgecolor": soft,
        "axes.linewidth": 0.8,
        "axes.labelcolor": soft,
        "axes.labelsize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": rule,
        "grid.linewidth": 0.6,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.labelcolor": soft,
        "ytick.labelcolor": soft,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
        "xtick.minor.size": 0,
        "lines.solid_capstyle": "round",
        "image.interpolation": "none",
    }
    try:
        with mpl.rc_context(settings):
            yield
    finally:
        _THEME.reset(token)


def inline(figure: Figure, key: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element for the body of an HTML page.

    Args:
        figure: what to draw; call inside `style()`.
        key: a prefix that no other figure of the page has; every id gets it, because a page has one space of ids.
        title: the accessible name.
        description: what a reader who does not see the figure should know.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows svg without its namespaces
        element.attrib = {_local(name): _rewrite(_local(name), value, key) for name, value in element.attrib.items()}
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{key}-title {key}-desc"}
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(tag, id=f"{key}-{tag}")
        label.text = text
        root.insert(position, label)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rewrite(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return f"#{key}-{value[1:]}" if value.startswith("#") else re.sub(r"\s", "", value)
    if name == "d":  # a hundredth of a unit is far below what can be seen, and half of the page's size
        return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    value = re.sub(r"url\(#([^)]*)\)", rf"url(#{key}-\1)", value)
    if name == "style":
        value = re.sub(r"#0000([0-9a-f]{2})\b", _variable, value)
        value = re.sub(r"font: (?:[a-z]+ |\d{3} )*([\d.]+)px [^;]*", r"font-size: \1px", value)
    return value


def _variable(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    return f"var(--{PAINTS[number - 1]})" if 1 <= number <= len(PAINTS) else found[0]
