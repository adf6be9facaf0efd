"""One forward of a stream: where its tokens stand, and the angles that all layers share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.spec import CacheSpec, PositionRule

Table = tuple[Tensor, Tensor]


@dataclass
class Step:
    """The L new tokens of a forward.

    Args:
        spec: the cache.
        rule: which distance the sinks are seen at.
        origin: the position id of the stream's first token; only differences matter.
        positions: (B, L) where the new tokens stand in the stream of their row, counted without padding.
        seen: (B,) how many tokens of each row came before.
        start: that number where it is the same for all rows and nothing is padded, and L > 1; else None.
        valid: (B, L) which of the tokens are not padding; None when all are.
        filled: every row has seen at least C tokens.
        tables: angles, made when they are first asked for.
        rows_seen: what each row of a ring holds and whether it is seen, by the shape of the ring.
        masks: of a dense chunk's blocks, which are of no use to another chunk.
        rows: where the new token goes, by the shape of the ring.
        attended: the layers that have stored the new tokens.
    """

    spec: CacheSpec
    rule: PositionRule
    origin: int
    positions: Tensor
    seen: Tensor
    start: int | None
    valid: Tensor | None
    filled: bool
    tables: dict[tuple[int, str, torch.dtype], Table] = field(default_factory=dict)
    rows_seen: dict[tuple[int, int, int | None], tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    attended: set[int] = field(default_factory=set)

    def in_cache(self, positions: Tensor) -> Tensor:
        """Where a query at `positions` stands as the sinks see it: min(i, C) under the `cache` rule."""
        size = self.spec.size
        return positions if self.rule == "original" or size is None else positions.clamp(max=size)

    def tokens(self, rotary: Rotary, dtype: torch.dtype) -> Table:
        """Angles of the new tokens at their positions, (B, 1, L, R)."""
        return self._table(rotary, "tokens", dtype, self.positions[:, None] + self.origin)

    def for_sinks(self, rotary: Rotary, dtype: torch.dtype) -> Table:
        """Angles that turn unrotated queries to where the sinks see them, (B, 1, L, R)."""
        return self._table(rotary, "for sinks", dtype, self.in_cache(self.positions)[:, None] + self.origin)

    def from_start(self, rotary: Rotary, dtype: torch.dtype) -> Table:
        """Angles that turn unrotated queries to where a key at position 0 sees them, (B, 1, L, R)."""
        return self._table(rotary, "from start", dtype, self.in_cache(self.positions)[:, None])

    @property
    def all_left(self) -> bool:
        """Whether each query sees the sinks from the same distance: the `cache` rule with C tokens before all."""
        return self.filled and self.rule == "cache"

    def sinks(self, rotary: Rotary, dtype: torch.dtype) -> Table:
        """Angles of the sinks at their own positions, (1, 1, x, R); as seen from C when all queries stand there."""
        own = torch.arange(self.spec.sinks, device=self.positions.device)[None, None]
        if self.all_left:
            return self._table(rotary, "sinks from C", dtype, own - (self.spec.size or 0))
        return self._table(rotary, "sinks", dtype, own + self.origin)

    def moved_sinks(self, rotary: Rotary, dtype: torch.dtype) -> Table:
        """Angles of the sinks for one query at position i: their own, moved by i - min(i, C), (B, 1, x, R)."""
        own = torch.arange(self.spec.sinks, device=self.positions.device)
        moved = own + (self.positions - self.in_cache(self.positions))  # (B, x), since L = 1
        return self._table(rotary, "moved sinks", dtype, moved[:, None] + self.origin)

    def _table(self, rotary: Rotary, name: str, dtype: torch.dtype, positions: Tensor) -> Table:
        """The table of that name, made once for all layers that rotate alike."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        key = (id(rotary), name, dtype)
        if key not in self.tables:
            self.tables[key] = rotary.table(positions, dtype)
        return self.tables[key]
