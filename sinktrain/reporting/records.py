"""What the files of a page hold, once they have been read and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

METHODS = ("window", "streaming", "dense", "recompute")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One way of keeping the history, and what it cost. NLL in nats per token; a missing number is NaN."""

    name: str
    method: str
    tokens: int
    tokens_full_cache: int
    ppl_all: float
    ppl_full_cache: float
    nll_full_cache: float
    interval: tuple[float, float]
    seconds: float
    rule: str = "cache"

    @property
    def predicted_per_second(self) -> float:
        """Predicted tokens a second. What else recompute runs through the model for each of its tokens is its price."""
        return self.tokens / self.seconds if self.seconds > 0 else math.nan

    @property
    def sinks_and_size(self) -> tuple[int, int] | None:
        """x and x + y of a cache x+y; None for dense and recompute."""
        first, plus, recent = self.name.split()[0].partition("+")
        return (int(first), int(first) + int(recent)) if plus and (first + recent).isdigit() else None


@dataclass(frozen=True)
class RulePair:
    """The position rules over the same tokens; `difference` is the paired mean of NLL[original] - NLL[cache] in nats.

    `interval` is its 95% interval; `enough` says whether there are enough tokens to rely on it.
    """

    tokens: int
    ppl_cache: float
    ppl_original: float
    difference: float
    interval: tuple[float, float]
    enough: bool


@dataclass(frozen=True)
class PositionRules:
    """One cache under both position rules, over all tokens with a full cache and over those past the trained length."""

    cache: str
    trained_length: int | None
    full_cache: RulePair
    past_trained_length: RulePair | None


@dataclass(frozen=True)
class Results:
    """What `sinktrain evaluate` wrote about one model. `nll[row name]` has one value a text token, NaN where none.

    `label` tells it apart from the others of a page, `place` is its folder, `run` the name of the RUN and `grid` the
    grid.json that it was found by, `sources` are the numbers of its files: results.json, and then nll.parquet.
    `nll["document"]` has the number of each token's document, if known.
    """

    command: str
    model: dict[str, Any]
    text: dict[str, Any]
    cache_size: int
    rule: str
    rows: tuple[Row, ...]
    attention: dict[str, Any] | None
    environment: dict[str, str]
    nll: dict[str, Floats]
    position_rules: PositionRules | None = None
    sources: tuple[int, ...] = ()
    label: str = ""
    place: str = ""
    run: str = ""
    grid: str = ""

    @property
    def main_rows(self) -> tuple[Row, ...]:
        """The caches of the largest size under the main position rule, dense and recompute: what is shown in curves."""
        return tuple(row for row in self.rows if row.rule == self.rule and self._is_main(row))

    def _is_main(self, row: Row) -> bool:
        size = row.sinks_and_size
        return row.name in ("dense", "recompute") if size is None else size[1] == self.cache_size

    @property
    def sinks(self) -> int:
        """How many sink tokens stand in front of the text."""
        sink = self.model.get("sink")
        return int(sink["count"]) if sink and sink["kind"] == "token" else 0

    def row(self, name: str) -> Row | None:
        """The row of that name, if it was evaluated."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def share(self) -> Floats | None:
        """Mean attention probability on position 0, shape (layers, heads)."""
        return None if self.attention is None else np.asarray(self.attention["share"], dtype=np.float32)


@dataclass(frozen=True)
class Series:
    """One column of the training log: the rows that have a value."""

    step: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """The log and the settings of one training run."""

    label: str
    metrics: dict[str, Series] | None
    settings: str | None
    sources: tuple[int, ...] = ()
    settings_sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """How often a model with one cache was right, at one distance in tokens (or lines); NaN where there is none.

    `gain` is by how many nats the answer is likelier than one to what was never said, with its 95% interval. `kinds`
    has (right, asked) of questions by kind.
    """

    cache: str
    distance: float
    lines: float
    asked: int
    right: int
    accuracy: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """A measurement of `recall`, `streameval` or `questions`.

    `method` says where the intervals are from, `chance` what share of choices guessing gets right.
    """

    kind: str
    label: str
    rows: tuple[Answer, ...]
    method: str
    sources: tuple[int, ...] = ()
    chance: float = math.nan

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions of any cache, in order."""
        return list(dict.fromkeys(kind for row in self.rows for kind in row.kinds))

    @property
    def caches(self) -> list[str]:
        """The caches, in order."""
        return list(dict.fromkeys(row.cache for row in self.rows))

    @property
    def by_distance(self) -> list[tuple[Answer, list[Answer | None]]]:
        """A row a distance: one answer at it, for what all share, and that of each cache. Empty without distances."""
        at = {(row.distance, row.cache): row for row in self.rows if row.distance == row.distance}
        distances = sorted({distance for distance, _ in at})
        cells = [[at.get((distance, cache)) for cache in self.caches] for distance in distances]
        return [(next(cell for cell in row if cell is not None), row) for row in cells]


@dataclass(frozen=True)
class Speed:
    """What `sinktrain bench stream` wrote: by method, milliseconds a token and MiB beside the weights, by cache size.

    Each method has rows of (size, median ms, first quartile, third quartile, MiB).
    """

    label: str
    title: str
    methods: dict[str, tuple[tuple[float, float, float, float, float], ...]]
    ratios: tuple[tuple[int, float, float], ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Flat:
    """A very long stream: mean NLL and MB of memory by hundredth of it.

    `drift` has rows of (token, mean NLL, that of a fresh stream, largest difference of a token).
    """

    label: str
    cache: str
    tokens: int
    nll: tuple[float, ...]
    memory: tuple[float, ...]
    growth: float
    drift: tuple[tuple[float, float, float, float], ...]
    sources: tuple[int, ...] = ()
