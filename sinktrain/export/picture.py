"""The card's picture: perplexity by cache."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

_INK, _DOT = "#80868f", "#d9822b"
"""Read on light and dark pages."""


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws the perplexities of tokens with a full cache, with their 95% intervals, as PNG without a background.

    Args:
        results: the record of `sinktrain evaluate`.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["rows"]
    values = [row["ppl_full_cache"] for row in rows]
    ends = [[exp(end) for end in row["interval"]] for row in rows]
    errors = [[v - low for v, (low, _) in zip(values, ends, strict=True)],
              [high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
    ink: Any = {
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with plt.rc_context({"font.size": 10, **ink}):
        figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.45 * len(rows)))
        axes.errorbar(values, range(len(rows)), xerr=errors, fmt="o", color=_DOT, capsize=3)
        for place, value in enumerate(values):
            axes.annotate(f"{value:.1f}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize=8)
        axes.set(yticks=range(len(rows)), yticklabels=[row["name"] for row in rows], xlim=(0, None))
        axes.set_xlabel(f"perplexity once the cache is full, {results['text']['name']}")
        axes.margins(y=0.25)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150, transparent=True, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
