"""What is made of the runs: medians, ratios, differences in NLL, and the table. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASELINES = ("attention_sinks", "StaticCache", "dense")
"""The contestants that others are compared with."""

TITLES = {
    "attention_sinks": "attention_sinks, token by token",
    "stream_nll": "evaluating: stream_nll",
    "dense": "evaluating: plain forward, C tokens",
    "SinkCache": "decoding: SinkCache",
    "StaticCache": "decoding: StaticCache, C + 1 rows",
}


def speeds(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By contestant: tokens/s of each round, their median, and the median of the ratios to each baseline.

    Args:
        rounds: by contestant, the `tokens` and `seconds` of each round. A ratio is taken within a round, since what
            else the machine does disturbs neighbours alike.
    """
    rates = {name: [run["tokens"] / run["seconds"] for run in runs] for name, runs in rounds.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, own in rates.items():
        ratios = {
            other: statistics.median(a / b for a, b in zip(own, rates[other], strict=True))
            for other in BASELINES
            if other in rates
        }
        found[name] = {"tokens_per_second": statistics.median(own), "rounds": own, "ratios": ratios}
    return found


def difference(nll: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]], first: int) -> dict[str, float]:
    """The largest and the mean absolute difference of two NLLs of a text, from index `first` to the shorter one's end.

    Raises:
        ValueError: nothing is left to compare.
    """
    end = min(len(nll), len(other))
    if end <= first:
        raise ValueError(f"{end} NLLs do not reach beyond the first {first}")
    gap = np.abs(nll[first:end].astype(np.float64) - other[first:end].astype(np.float64))
    return {"largest": float(gap.max()), "mean": float(gap.mean()), "tokens": end - first}


def speed_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines: one contestant each, with ratios to the baselines that ran."""
    baselines = [name for name in BASELINES if name in found]
    lines = [f"{'':<38}{'tokens/s':>10}" + "".join(f"{'x ' + name:>19}" for name in baselines) + "   rounds"]
    for name in [name for name in TITLES if name in found]:
        row = found[name]
        ratios = "".join(f"{row['ratios'][other]:>19.2f}" for other in baselines)
        rounds = " ".join(f"{rate:.1f}" for rate in row["rounds"])
        lines.append(f"{TITLES[name]:<38}{row['tokens_per_second']:>10.1f}{ratios}   {rounds}")
    return lines


def difference_table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines: one comparison each."""
    lines = [f"{'difference in NLL':<54}{'largest':>10}{'mean':>10}{'tokens':>8}"]
    for name, row in found.items():
        lines.append(f"{name:<54}{row['largest']:>10.2g}{row['mean']:>10.2g}{row['tokens']:>8.0f}")
    return lines
