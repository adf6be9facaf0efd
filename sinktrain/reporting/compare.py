"""Models side by side: one table a text, and the paired differences between runs on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sinktrain.base.errors import UserError
from sinktrain.evaluation import comparison
from sinktrain.evaluation.grid import full_cache
from sinktrain.evaluation.statistics import estimate, estimate_over_seeds
from sinktrain.reporting.numbers import exponential
from sinktrain.reporting.records import Results, Row
from sinktrain.reporting.verdict import Comparison

Mask = npt.NDArray[np.bool_]


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
    return _panels([[results for results in every if results.text["sha256"] == each] for each in hashes])


def by_name(every: Sequence[Results]) -> list[Panel]:
    """A panel for each stretch of a text; in bits per byte where the same bytes were cut into different tokens.

    Raises:
        UserError: there are no two models to compare.
    """
    found: dict[tuple[str, str], list[Results]] = {}
    for results in every:
        text = results.text
        # a text without its bytes, is known by its tokens alone
        spelling = text["spelling"] if text["spelling"] and text["bytes"] else text["sha256"]
        found.setdefault((text["name"], spelling), []).append(results)
    stretches = list(found.values())
    if not any(len(columns) > 1 for columns in stretches):
        raise UserError(
            "--compare: needs two evaluations of one text; name RUNs that were evaluated with the same --text, "
            "--tokens and --skip (models with other tokenizers in one run, by --beside)."
        )
    return _panels(stretches)


def _panels(stretches: Sequence[Sequence[Results]]) -> list[Panel]:
    """Under the name of the text; with its length, and then its hash, where others go by the same name."""
    bits = [len({results.text["sha256"] for results in columns}) > 1 for columns in stretches]
    texts = [columns[0].text for columns in stretches]
    names = [text["name"] for text in texts]
    for more in (
        [f"{t['bytes']:,} bytes" if b else f"{t['tokens']:,} tokens" for t, b in zip(texts, bits, strict=True)],
        [f"SHA-256 {text['sha256'][:8]}" for text in texts],
    ):
        names = [f"{n}, {m}" if names.count(n) > 1 else n for n, m in zip(names, more, strict=True)]
    return [Panel(name, tuple(columns), b) for name, columns, b in zip(names, stretches, bits, strict=True)]


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
    counted = _full((a, b), len(x)) & np.isfinite(x) & np.isfinite(y)
    series = (x - y)[counted]
    if not len(series):
        return None
    interval = estimate(series, documents(a, counted))
    enough = comparison.Comparison(a.label, b.label, row.name, "as good", interval, margin=0.0).enough
    return Comparison(
        a=a.label, b=b.label, question=row.name, tokens=interval.tokens, difference=interval.mean,
        interval=(interval.low, interval.high), bound=math.nan, block_length=interval.block_length, enough=enough,
        holds=interval.high < 0 or interval.low > 0, title=row.name,
    )  # fmt: skip


def over_seeds(models: Sequence[Results], row: str) -> tuple[float, float]:
    """The 95% interval of the mean NLL of a row over models that differ in their seed only, on one text."""
    every = np.stack([results.nll[row] for results in models if row in results.nll]).astype(np.float64)
    counted = _full(models, every.shape[1]) & np.isfinite(every).all(axis=0)
    if not counted.any():
        return math.nan, math.nan
    interval = estimate_over_seeds(every[:, counted], documents(models[0], counted))
    return interval.low, interval.high


def documents(results: Results, counted: Mask) -> npt.NDArray[np.int64] | None:
    """The number of the document of each counted token; None where it is not known."""
    found = results.nll.get("document")
    return None if found is None else found[counted].astype(np.int64)


def _full(models: Sequence[Results], tokens: int) -> Mask:
    """(T,) the tokens that each of the models predicted with a full cache."""
    mask: Mask = np.logical_and.reduce([full_cache(tokens, each.sinks, each.cache_size) for each in models])
    return mask
