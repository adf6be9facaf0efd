"""The tables of `sinktrain bench stream` on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MIB = 2**20


def tables(record: dict[str, Any]) -> Iterator[str]:
    """The lines of all tables; `record` as in stream.json."""
    yield from _decoding(record["decoding"])
    if any(row["ratios"] for row in record["decoding"]):
        yield ""
        yield from _ratios(record["decoding"])
    if record["evaluation"]:
        yield ""
        yield from _evaluation(record["evaluation"])


def _decoding(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'decoding':>10}  {'':<10}{'ms a token':>12}{'half of them':>20}{'cache MiB':>12}{'working MiB':>13}"
    for row in rows:
        for name, found in row["methods"].items():
            low, high = found["quartiles_ms"]
            yield (
                f"{row['cache']:>10}  {name:<10}{found['median_ms']:>12.2f}{f'{low:.2f} to {high:.2f}':>20}"
                f"{found['cache_bytes'] / MIB:>12.2f}{found['working_bytes'] / MIB:>13.2f}"
            )


def _ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = list(rows[0]["ratios"])
    yield f"{'ratios':>10}" + "".join(f"{name:>22}" for name in names) + f"{'the paper (A6000, 7B)':>24}"
    for row in rows:
        paper = row["paper_recompute/streaming"]
        ours = "".join(f"{row['ratios'][name]:>22.2f}" for name in names)
        yield f"{row['cache']:>10}" + ours + f"{'-' if paper is None else f'{paper:.1f}':>24}"


def _evaluation(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = list(rows[0]["methods"])
    yield f"{'evaluation':>10}" + "".join(f"{f'{name} tok/s':>22}" for name in names) + f"{'stream/dense':>24}"
    for row in rows:
        speeds = "".join(f"{row['methods'][name]['median_tokens_per_second']:>22.1f}" for name in names)
        yield f"{row['cache']:>10}" + speeds + f"{row['ratios']['stream/dense']:>24.2f}"
