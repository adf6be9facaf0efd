"""Who looks at the attention of a model, block of queries by block: see `sinktrain.streaming.observe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """R queries of a layer and the N keys from the first that one of them sees to the last.

    Args:
        layer: its number, from 0.
        first: the position of the first query; the others follow.
        low: the position of the first key: above 0 in a sliding window only.
        length: T, of the text.
        logits: (B, H, R, N) what the softmax is taken of: scaled, capped where the model caps; -inf where not seen.
        weights: (B, H, R, N) the attention; each row and its outlet sum to 1.
        outlet_logits: (B, H, R) the outlet's logit; None for a softmax without.
        outlet: (B, H, R) the attention on the outlet.
    """

    layer: int
    first: int
    low: int
    length: int
    logits: Tensor
    weights: Tensor
    outlet_logits: Tensor | None
    outlet: Tensor | None

    def on(self, position: int) -> Tensor:
        """(B, H, R) the attention on a position."""
        column = position - self.low
        if 0 <= column < self.weights.shape[3]:
            return self.weights[..., column]
        return self.weights.new_zeros(self.weights.shape[:3])


class Watcher:
    """Is shown what a model attends to, layer after layer."""

    def layer(self, number: int, key: Tensor, value: Tensor) -> None:
        """A layer begins, with rotated keys (B, H_kv, T, D) and values (B, H_kv, T, D_v)."""

    def block(self, block: Block) -> None:
        """The layer's next queries."""


class Columns(Watcher):
    """Keeps the attention on `positions` (P) and on the outlet; see `attention_columns`."""

    def __init__(self, positions: Sequence[int], after: int = 0) -> None:
        self.positions, self.after = positions, after
        self._columns: dict[int, Tensor] = {}
        self._outlets: dict[int, Tensor] = {}

    def block(self, block: Block) -> None:
        """Adds its part of each mean."""
        found = [self._part(block, position + self.after, position) for position in self.positions]
        add(self._columns, block.layer, torch.stack(found, dim=-1))
        if block.outlet is not None:
            add(self._outlets, block.layer, block.outlet.sum(dim=-1) / block.length)

    def _part(self, block: Block, begin: int, position: int) -> Tensor:
        count = block.length - begin  # 0: there is no such query, and 0/0 the mean
        return block.on(position)[..., max(0, begin - block.first) :].sum(dim=-1) / max(count, 0)

    @property
    def alpha(self) -> Tensor:
        """(B, layers, H, P)."""
        return torch.stack(list(self._columns.values()), dim=1)

    @property
    def outlet(self) -> Tensor | None:
        """(B, layers, H), or None."""
        return torch.stack(list(self._outlets.values()), dim=1) if self._outlets else None


def add(sums: dict[int, Tensor], key: int, part: Tensor) -> None:
    """Adds `part` to the sum of `key`."""
    sums[key] = sums[key] + part if key in sums else part
