"""What is made of runs in training: tokens/s, ratios within rounds with intervals, MFU, the table. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from kinds_table import interval

PEAKS = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16 FLOP/s by what the device's name holds (NVIDIA's data sheets, without sparsity); the first that fits."""

KINDS = ("none", "token", "zero", "logit", "kv")
TITLES = {kind: f"sinktrain, sink.kind {kind}" for kind in KINDS} | {
    "trainer": "transformers.Trainer",
    "litgpt": "litgpt.pretrain",
}
"""The contestants, in the order of the table."""

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""By contestant, its result in each round."""


def tokens_per_second(run: Mapping[str, Any], positions: int) -> float:
    """Positions of an optimizer step over the median time of a step.

    Raises:
        ValueError: no step was timed.
    """
    if not run["seconds"]:
        raise ValueError("no step was timed")
    return positions / median(run["seconds"])


def ratio(own: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the ratios within each round, and the ends of its 95% interval (Student, on logarithms).

    What else the machine does disturbs neighbours alike, so a ratio is taken within a round.
    """
    center, half = interval([math.log(a / b) for a, b in zip(own, other, strict=True)])
    return math.exp(center), math.exp(center - half), math.exp(center + half) if half < math.inf else math.inf


def mfu(rate: float, matrices: int, layers: int, width: int, length: int, peak: float) -> float:
    """The share of a device's FLOP/s that the model's own arithmetic takes: (6 N + 12 L d T) tokens/s / peak.

    PaLM, arXiv 2204.02311, appendix B; attention counts as if it were not causal.

    Args:
        rate: tokens/s.
        matrices: N, parameters without an embedding that only looks rows up.
        layers: L.
        width: d.
        length: T, positions of a sample.
        peak: FLOP/s.
    """
    return (6 * matrices + 12 * layers * width * length) * rate / peak


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device, where it is known."""
    return next((peak for name, peak in PEAKS.items() if all(w in device_name for w in name.split())), None)


def disagreement(runs: Runs, tolerance: float) -> str | None:
    """What shows that contestants do not do the same work, in words; None when all is well.

    Those of the same samples (all but the kinds with a sink) must have the same loss before the first step, to
    `tolerance`, and all but the kinds with parameters of their own the same number of parameters.
    """
    alike = [name for name in runs if name in ("none", "trainer", "litgpt")]
    losses = {name: runs[name][0]["loss"] for name in alike}
    if losses and max(losses.values()) - min(losses.values()) > tolerance:
        return f"first losses differ: {losses}"
    sizes = {name: runs[name][0]["parameters"] for name in (*alike, *(["token"] if "token" in runs else []))}
    return f"numbers of parameters differ: {sizes}" if len(set(sizes.values())) > 1 else None


def table(runs: Runs, positions: int, model: Mapping[str, int], length: int, peak: float | None) -> list[str]:
    """Lines: one contestant each, with ratios to Trainer, to litgpt and to kind `none`, each with its interval."""
    rates = {name: [tokens_per_second(run, positions) for run in runs[name]] for name in TITLES if name in runs}
    others = [name for name in ("trainer", "litgpt", "none") if name in rates]
    cells = [["", "tokens/s", *(f"x {name} (95% interval)" for name in others), "memory", "loss", "MFU"]]
    for name, own in rates.items():
        row = [TITLES[name], f"{median(own):,.0f}"]
        row += ["" if name == other else spread(*ratio(own, rates[other])) for other in others]
        row += [f"{max(run['memory'] for run in runs[name]) / 2**20:,.0f} MiB", f"{runs[name][0]['loss']:.4f}"]
        sizes = (model["matrices"], model["layers"], model["width"], length)
        cells.append([*row, "" if peak is None else f"{mfu(median(own), *sizes, peak):.1%}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)).rstrip()
        for row in cells
    ]


def spread(center: float, low: float, high: float) -> str:
    """A ratio and its interval in words."""
    return f"{center:.3f}" if high == math.inf else f"{center:.3f} ({low:.3f} to {high:.3f})"


def mean_to_median(run: Mapping[str, Any]) -> float:
    """How much longer steps are on average than the median one: what logging and collecting garbage add."""
    return mean(run["seconds"]) / median(run["seconds"])
