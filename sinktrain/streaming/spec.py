"""The streaming cache, written `x+y`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sinktrain.base.errors import UserError

PositionRule = Literal["cache", "original"]
"""Which distance to a sink a query sees: counted inside the cache (StreamingLLM, section 3.2), or in the text, as the
MIT News article about the paper describes it."""


@dataclass(frozen=True)
class CacheSpec:
    """A cache that keeps the first `sinks` positions and the `recent` most recent ones (StreamingLLM, Figure 4).

    Eviction comes after a step, so the query at position i sees the key at j <= i when j < x or i - j <= y.

    Args:
        sinks: x, how many of the first positions are never evicted.
        recent: y, how many of the most recent positions are kept beside them; None keeps all (`dense`).
    """

    sinks: int
    recent: int | None

    def __post_init__(self) -> None:
        if self.sinks < 0 or (self.recent is not None and self.recent < 1):
            raise UserError(f"cache {self}: needs y >= 1 recent position and x >= 0 sinks; write it as 1+1023.")

    @classmethod
    def parse(cls, text: str, option: str = "cache") -> CacheSpec:
        """Reads `x+y` or `dense`.

        Raises:
            UserError: `text` is neither, or y is 0.
        """
        if text.strip() == "dense":
            return cls(0, None)
        match = re.fullmatch(r"(\d+)\+(\d+)", text.strip())
        if match is None or int(match[2]) == 0:
            raise UserError(f"{option} {text!r}: is not a cache; write x sinks + y >= 1 recent tokens, such as 1+1023.")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def default(cls, trained_sinks: int, trained_length: int | None) -> CacheSpec:
        """1,024 positions, or as many as the model was trained for: its sinks, the rest recent.

        Four ordinary first tokens serve a model without a sink (StreamingLLM, Table 2).
        """
        size = min(1024, trained_length or 1024)
        sinks = min(trained_sinks or 4, size - 1)
        return cls(sinks, size - sinks)

    @property
    def size(self) -> int | None:
        """C = x + y, the number of cached positions; None when everything is kept."""
        return None if self.recent is None else self.sinks + self.recent

    def longest(self, rule: PositionRule, tokens: int | None = None) -> int | None:
        """How many positions a stream of `tokens` lets the model see at once; None if that has no end."""
        if rule == "original" or self.size is None:
            return tokens
        return self.size + 1 if tokens is None else min(tokens, self.size + 1)

    @property
    def method(self) -> Literal["dense", "window", "streaming"]:
        """The name for it: `dense` evicts nothing, `window` keeps no sink, `streaming` keeps some."""
        if self.recent is None:
            return "dense"
        return "streaming" if self.sinks else "window"

    def __str__(self) -> str:
        return "dense" if self.recent is None else f"{self.sinks}+{self.recent}"
