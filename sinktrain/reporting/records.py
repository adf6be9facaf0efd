"""What the files of a page hold, once they have been read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

METHODS = ("window", "streaming", "dense", "recompute")
STATEMENTS = ("proven", "not proven", "could not be judged")

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
    tokens_per_second: float


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
    """What `sinktrain evaluate` wrote about one model. `nll[row name]` has one value a text token, NaN where none."""

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
class Comparison:
    """Paired mean of NLL(a) - NLL(b) in nats, its 95% interval, and the one-sided 95% bound that decides.

    `bound` is the upper one where `a` should be no worse than `b`, and the lower one where it should be worse.
    """

    a: str
    b: str
    question: str
    tokens: int
    difference: float
    interval: tuple[float, float]
    bound: float
    block_length: int | None
    enough: bool
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """What `sinktrain verify` wrote."""

    statement: str
    sentences: tuple[str, ...]
    margin: float
    cache_size: int
    model: str
    comparisons: tuple[Comparison, ...]
    needed: Comparison | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One column of the training log: the rows that have a value."""

    step: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]
