"""Draws the README's picture from the quickstart's results: python recipes/quickstart/picture.py

Reads runs/quickstart/{base,tuned} and writes caches.svg beside this file. Grey ink and no background, so that it reads
on light and dark pages.
"""

import json
from math import exp
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "quickstart"
INK = "#80868f"
MODELS = {"base": ("SmolLM2-135M as it is", INK, -0.13), "tuned": ("fine-tuned with a sink token", "#d9822b", 0.13)}
CACHES = {"0+256": "0+256\nno sink", "1+255": "1+255\none sink", "4+252": "4+252\nfour sinks"}

plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
                     "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "sinktrain"})  # fmt: skip
figure, axes = plt.subplots(figsize=(6.4, 2.6))
for name, (label, color, shift) in MODELS.items():
    rows = {row["name"]: row for row in json.loads((RUNS / name / "results.json").read_text())["rows"]}
    values = [rows[cache]["ppl_full_cache"] for cache in CACHES]
    ends = [[exp(end) for end in rows[cache]["interval"]] for cache in CACHES]
    errors = [[v - low for v, (low, _) in zip(values, ends, strict=True)],
              [high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
    places = [shift + i for i in range(len(CACHES))]
    axes.errorbar(values, places, xerr=errors, fmt="o", color=color, capsize=3, label=label)
    for value, place in zip(values, places, strict=True):
        axes.annotate(f"{value:.1f}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize=8)
axes.set(yticks=range(len(CACHES)), yticklabels=list(CACHES.values()), xlim=(0, None))
axes.set_xlabel("perplexity once the cache is full, with 95% interval")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="center right")
figure.savefig(HERE / "caches.svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
