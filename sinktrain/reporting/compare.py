"""Models side by side: one table a text, and the paired differences between runs on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sinktrain.base.errors import UserError
from sinktrain.evaluation.statistics import estimate, estimate_over_seeds
from sinktrain.reporting.numbers import exponential
from sinktrain.reporting.records import Comparison, Results, Row

Mask = npt.NDArray[np.bool_]
FEWEST_TOKENS, FEWEST_BLOCKS = 200, 20
"""As `sinktrain verify` has them: with fewer an interval says nothing."""


@dataclass(frozen=True)
class Panel:
    """The models that were evaluated on one text.

    `bits` says that the numbers are bits per byte, since the models cut the text into different tokens.
    """

    text: str
    columns: tuple[Results, ...]
    bits: bool

    @property
    def names(self) -> list[str]:
        """Every cache of any model, in order."""
        return list(dict.fromkeys(row.name for results in self.columns for row in results.rows))

    @property
    def sources(self) -> tuple[int, ...]:
        """The results.json of each model."""
        return tuple(results.sources[0] for results in self.columns if results.sources)

    @property
    def pair_sources(self) -> tuple[int, ...]:
        """The files that hold the NLL of each token."""
        return tuple(results.sources[1] for results in self.columns if len(results.sources) > 1)

    @property
    def stretches(self) -> list[str]:
        """How long the text was for each model, where it was not the same for all."""
        if not self.bits:
            return []
        return [f"{each.label}: {each.text['tokens']:,} tokens, {each.text['bytes']:,} bytes" for each in self.columns]

    def value(self, results: Results, nll: float) -> float:
        """PPL, or bits per byte, of a mean NLL with a full cache."""
        if not self.bits:
            return exponential(nll)
        return nll / math.log(2) * float(results.text["tokens"] / results.text["bytes"])

    def cell(self, results: Results, name: str) -> tuple[float, float, float] | None:
        """The value and its 95% interval; None where the cache was not evaluated."""
        row = results.row(name)
        if row is None:
            return None
        low, high = row.interval
        value = self.value(results, row.nll_full_cache) if self.bits else row.ppl_full_cache
        return value, self.value(results, low), self.value(results, high)


def by_hash(every: Sequence[Results]) -> list[Panel]:
    """A panel for each text, told apart by the hash of its tokens."""
    hashes = dict.fromkeys(results.text["sha256"] for results in every)
    panels = [tuple(results for results in every if results.text["sha256"] == each) for each in hashes]
    return [Panel(columns[0].text["name"], columns, bits=False) for columns in panels]


def by_name(every: Sequence[Results]) -> list[Panel]:
    """A panel for each text by its name; in bits per byte where the hashes of its tokens differ.

    Raises:
        UserError: there are no two models to compare, or the length of a text in bytes is not known and is needed.
    """
    panels = []
    for name in dict.fromkeys(results.text["name"] for results in every):
        columns = tuple(results for results in every if results.text["name"] == name)
        bits = len({results.text["sha256"] for results in columns}) > 1
        unknown = [results for results in columns if not results.text["bytes"]]
        if bits and unknown:
            raise UserError(
                f"--compare {unknown[0].place or unknown[0].label}: the runs cut {name} into different tokens, and "
                "this one does not say how many bytes it has; evaluate it again, or leave it out."
            )
        panels.append(Panel(name, columns, bits))
    if not any(len(panel.columns) > 1 for panel in panels):
        raise UserError(
            "--compare: needs two evaluations of one text; name RUNs that were evaluated with the same --text."
        )
    return panels


def differences(panel: Panel) -> list[tuple[Results, list[Comparison]]]:
    """Each model minus the first, cache by cache, over the tokens that both predicted with a full cache.

    The interval is from a bootstrap over the paired differences, of documents or of blocks; see
    `sinktrain.evaluation.statistics`. None for different tokens.
    """
    if panel.bits or len(panel.columns) < 2:
        return []
    first, *others = panel.columns
    found = []
    for other in others:
        pairs = [_difference(row, other, first) for row in other.rows]
        kept = [pair for pair in pairs if pair is not None]
        if kept:
            found.append((other, kept))
    return found


def _difference(row: Row, a: Results, b: Results) -> Comparison | None:
    if b.row(row.name) is None or (a.cache_size, a.rule) != (b.cache_size, b.rule):
        return None
    x, y = a.nll[row.name].astype(np.float64), b.nll[row.name].astype(np.float64)
    if len(x) != len(y):
        return None
    counted = _full(a, len(x)) & _full(b, len(y)) & np.isfinite(x) & np.isfinite(y)
    series = (x - y)[counted]
    if not len(series):
        return None
    interval = estimate(series, documents(a, counted))
    enough = interval.tokens >= FEWEST_TOKENS and interval.tokens >= FEWEST_BLOCKS * interval.block_length
    return Comparison(
        a=a.label, b=b.label, question=row.name, tokens=interval.tokens, difference=interval.mean,
        interval=(interval.low, interval.high), bound=math.nan, block_length=interval.block_length, enough=enough,
        holds=interval.high < 0 or interval.low > 0, title=row.name,
    )  # fmt: skip


def over_seeds(models: Sequence[Results], row: str) -> tuple[float, float]:
    """The 95% interval of the mean NLL of a row over models that differ in their seed only, on one text."""
    every = np.stack([results.nll[row] for results in models if row in results.nll]).astype(np.float64)
    counted = _full(models[0], every.shape[1]) & np.isfinite(every).all(axis=0)
    if not counted.any():
        return math.nan, math.nan
    interval = estimate_over_seeds(every[:, counted], documents(models[0], counted))
    return interval.low, interval.high


def documents(results: Results, counted: Mask) -> npt.NDArray[np.int64] | None:
    """The number of the document of each counted token; None where it is not known."""
    found = results.nll.get("document")
    return None if found is None else found[counted].astype(np.int64)


def _full(results: Results, length: int) -> Mask:
    """(T,) the tokens predicted with a full cache, as `sinktrain evaluate` counts them."""
    mask: Mask = np.arange(length) + results.sinks - 1 >= results.cache_size
    return mask
