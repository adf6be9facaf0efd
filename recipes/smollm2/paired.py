"""Result folders of `sinktrain evaluate`, and differences between them on the same tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, expm1
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.evaluation.results import Results, read_results
from sinktrain.evaluation.statistics.interval import Interval
from sinktrain.evaluation.statistics.mean import estimate

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """The NLLs (T,) of a text under one cache, NaN where a token was not predicted, and which ones had a full cache."""

    nll: NDArray[np.float64]
    full: Mask


def row(results: Results, cache: str) -> Row | None:
    """The row of `cache`; None where it was not measured."""
    found = results.nll.get(cache)
    return None if found is None else Row(found, results.full_cache())


def same_tokens(*rows: Row) -> Mask:
    """(T,) the tokens that all rows predicted with a full cache."""
    mask: Mask = np.logical_and.reduce([each.full & np.isfinite(each.nll) for each in rows])
    return mask


def figure(each: Row, mask: Mask) -> Interval:
    """The mean NLL over the tokens in `mask`, with its interval.

    Raises:
        UserError: there is no token.
    """
    if not mask.any():
        raise UserError("the results have no token in common that both predicted with a full cache; evaluate alike.")
    return estimate(each.nll[mask])


def difference(a: Row, b: Row) -> Interval:
    """The mean of NLL a - NLL b over the tokens that both predicted with a full cache, paired by token.

    Raises:
        UserError: there is no such token.
    """
    return figure(Row(a.nll - b.nll, a.full), same_tokens(a, b))


def check_same_text(a: Results, b: Results, names: str) -> None:
    """Refuses results of different texts.

    Raises:
        UserError: they are.
    """
    if a.record["text"]["sha256"] != b.record["text"]["sha256"]:
        raise UserError(f"{names}: were not measured on the same tokens; evaluate with the same --text and --tokens.")


def read(path: Path) -> Results:
    """A result folder."""
    return read_results(path, "results")


def ppl(found: Interval) -> str:
    """`12.34 (11.9 to 12.8)`: perplexity with the 95% interval of the mean NLL."""
    return f"{exp(found.mean):.2f} ({exp(found.low):.2f} to {exp(found.high):.2f})"


def percent(found: Interval) -> str:
    """`+0.12% (-0.10% to +0.34%)`: a difference in NLL as one of perplexity."""
    return f"{_percent(found.mean)} ({_percent(found.low)} to {_percent(found.high)})"


def _percent(nats: float) -> str:
    return f"{100 * expm1(min(nats, 20.0)):+.2f}%"


def markdown(rows: list[list[str]]) -> str:
    """A table, the header first."""
    header, *rest = rows
    lines = [header, ["---"] * len(header), *rest]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def run(main: Callable[[], int]) -> None:
    """Runs a script; a mistake in its input is one sentence and exit status 2, as for `sinktrain`."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
