"""What the raw timings come to: medians, quartiles and ratios, and the paper's figures to set beside them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

PAPER: dict[str, Any] = {
    "source": "arXiv 2309.17453, figure 10: Llama-2-7B on an A6000, milliseconds a token",
    "streaming": {"256": 31, "512": 31, "1024": 35, "2048": 45, "4096": 65},
    "recompute": {"256": 63, "512": 103, "1024": 223, "2048": 523, "4096": 1411},
}
"""StreamingLLM's own measurement."""

RATIOS = ("recompute", "dense", "static")
"""What `streaming` is compared with; above 1 means that `streaming` is faster."""


def decoding_summary(turns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The median and quartiles of milliseconds a token.

    Args:
        turns: the milliseconds of each token, by turn.
    """
    low, _, high = quantiles([ms for turn in turns for ms in turn], n=4, method="inclusive")
    return {"median_ms": median(ms for turn in turns for ms in turn), "quartiles_ms": [low, high], "ms": turns}


def decoding_ratios(methods: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as long as `streaming` the others take, by name such as `recompute/streaming`."""
    if "streaming" not in methods:
        return {}
    ours = methods["streaming"]["median_ms"]
    return {f"{name}/streaming": methods[name]["median_ms"] / ours for name in RATIOS if name in methods}


def paper_ratio(size: int) -> float | None:
    """The paper's recompute/streaming at a cache of `size`; None where it has none."""
    recompute = PAPER["recompute"].get(str(size))
    return None if recompute is None else float(recompute / PAPER["streaming"][str(size)])


def evaluation_summary(found: dict[str, dict[str, Any]], streaming_ms: float | None) -> dict[str, Any]:
    """Median tokens a second of `stream` and `dense`, and their ratios.

    Args:
        found: what `evaluation_seconds` returned.
        streaming_ms: milliseconds a token of decoding with the same cache, which is what token by token would take.
    """
    methods = {
        name: {"median_tokens_per_second": each["tokens"] / median(each["seconds"]), **each}
        for name, each in found.items()
    }
    ours = methods["stream"]["median_tokens_per_second"]
    ratios = {"stream/dense": ours / methods["dense"]["median_tokens_per_second"]}
    if streaming_ms is not None:
        methods["token by token"] = {"median_tokens_per_second": 1000 / streaming_ms}
        ratios["stream/token by token"] = ours / methods["token by token"]["median_tokens_per_second"]
    return {"methods": methods, "ratios": ratios}
