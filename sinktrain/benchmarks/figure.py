"""The figure of StreamingLLM (its figure 10): latency and memory of a token by cache size, one line a method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart; marker and dash differ as well.
LOOKS: dict[str, dict[str, Any]] = {
    "streaming": {"color": "#0072B2", "marker": "o", "linestyle": "-", "linewidth": 2.4, "zorder": 4},
    "recompute": {"color": "#D55E00", "marker": "s", "linestyle": "-", "zorder": 3},
    "static": {"color": "#009E73", "marker": "^", "linestyle": (0, (5, 2))},
    "dense": {"color": "#555555", "marker": "D", "linestyle": (0, (1.2, 1.6))},
}
LABELS = {
    "streaming": "streaming (SinkCache)",
    "recompute": "recompute of a window of C",
    "static": "transformers, StaticCache of C",
    "dense": "transformers, DynamicCache of C",
}
MIB = 2**20


def draw(record: dict[str, Any]) -> Figure:
    """Two panels over the cache size C: milliseconds a token with quartiles, and MiB beside the weights.

    Args:
        record: as in stream.json.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.1), facecolor="white", layout="constrained")
    latency, memory = figure.subplots(1, 2)
    rows = record["decoding"]
    for method in (name for name in LOOKS if name in rows[0]["methods"]):
        look = LOOKS[method] | {"label": LABELS[method], "markersize": 6}
        sizes = [row["size"] for row in rows]
        found = [row["methods"][method] for row in rows]
        latency.plot(sizes, [each["median_ms"] for each in found], **look)
        low, high = zip(*(each["quartiles_ms"] for each in found), strict=True)
        latency.vlines(sizes, low, high, color=look["color"], linewidth=1.2)
        memory.plot(sizes, [(each["cache_bytes"] + each["working_bytes"]) / MIB for each in found], **look)
    for row in rows:
        if (ratio := row["ratios"].get("recompute/streaming")) is not None:
            latency.annotate(
                f"{ratio:.1f}x", (row["size"], row["methods"]["recompute"]["median_ms"]),
                xytext=(0, 8), textcoords="offset points", ha="center", color="#9A4300", fontsize=9, zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
    _finish(latency, "latency, ms a token (median; bars: quartiles)", rows)
    _finish(memory, "memory beside the weights, MiB (cache and working)", rows)
    figure.suptitle("\n".join([_title(record), *_note(rows)]), fontsize=10)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, handlelength=3)
    return figure


def _finish(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    sizes = [row["size"] for row in rows]
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("C, tokens in the cache")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(record: dict[str, Any]) -> str:
    model, machine = record["model"], record["machine"]
    where = machine["name"] if machine["device"] != "cpu" else f"CPU, {machine['threads']} threads"
    compiled = ", compiled" if record["settings"]["compile"] else ""
    name = model["name"].rstrip("/").rpartition("/")[2]  # the last part of a path
    return f"Decoding one token with C before it: {name}, {model['dtype']}, {where}{compiled}"


def _note(rows: list[dict[str, Any]]) -> list[str]:
    """What the ratios mean, and the paper's."""
    if not any("recompute/streaming" in row["ratios"] for row in rows):
        return []
    paper = [row for row in rows if row["paper_recompute/streaming"] is not None]
    theirs = ", ".join(f"{row['paper_recompute/streaming']:.1f}x at {row['size']}" for row in paper)
    meaning = "2.0x: recompute takes twice as long as streaming."
    return [meaning, *([f"The paper (Llama-2-7B, A6000): {theirs}."] if theirs else [])]


def write_figure(record: dict[str, Any], folder: Path) -> None:
    """Writes stream.svg and stream.png into `folder`."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sinktrain", "text.parse_math": False}):
        figure = draw(record)
        figure.savefig(folder / "stream.svg", metadata={"Date": None})
        figure.savefig(folder / "stream.png", dpi=160)
