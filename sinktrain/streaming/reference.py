"""Token-by-token decoding with a rolling cache, as slow and as obvious as can be: what the evaluator is tested against.

Nothing is clever here. The model runs one token at a time with its own attention. The cache holds keys without
positions; each step gives every cached key its place again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sinktrain.streaming.nll import token_nll
from sinktrain.streaming.positions import Positions
from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.spec import CacheSpec, PositionRule


class RollingLayer(DynamicLayer):
    """One layer's cache: keys (1, H, n, D) without positions, values, and the position in the text of each."""

    def __init__(self, cache: CacheSpec, rule: PositionRule, rotary: Rotary | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.rule, self.rotary = cache, rule, rotary
        self.in_text: list[int] = []

    def places(self, in_text: list[int]) -> Tensor:
        """Where the positions `in_text` stand: their place in the cache, or in the text."""
        return torch.arange(len(in_text)) if self.rule == "cache" else torch.tensor(in_text)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes the new token's key, made at its place, and returns all keys, each at its place."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        position = self.in_text[-1] + 1 if self.in_text else 0
        in_text = [*self.in_text, position]
        places = self.places(in_text)
        places = places.to(key_states.device)
        keys = torch.cat((self.keys, self._turn(key_states, -places[-1:])), dim=2)
        values = torch.cat((self.values, value_states), dim=2)

        kept = [n for n, j in enumerate(in_text) if self._is_kept(j, position)]
        self.keys, self.values = keys[:, :, kept], values[:, :, kept]
        self.in_text = [in_text[n] for n in kept]
        return self._turn(keys, places).to(value_states.dtype), values

    def _is_kept(self, j: int, position: int) -> bool:
        """Eviction after the step at `position`: the sinks and the y most recent stay."""
        return j < self.cache.sinks or self.cache.recent is None or position - j < self.cache.recent

    def _turn(self, keys: Tensor, distance: Tensor) -> Tensor:
        return keys if self.rotary is None else self.rotary.turn(keys, distance)


@torch.no_grad()
def reference_nll(
    model: PreTrainedModel,
    tokens: Tensor,
    cache: CacheSpec,
    *,
    rule: PositionRule = "cache",
) -> Tensor:
    """The NLL (T-1,) of tokens 1 ... T-1 of the text `tokens` (T,), decoded one at a time; see `stream_nll`."""
    positions = Positions.probe(model, cache.longest(rule, len(tokens) - 1))
    layers = [RollingLayer(cache, rule, rotary) for rotary in positions.rotary]
    rolling = Cache(layers=list(layers))
    tokens = tokens.to(model.device)
    parts = []
    for i in range(len(tokens) - 1):
        place = layers[0].places([*layers[0].in_text, i])[-1:].to(model.device)
        logits = model(
            input_ids=tokens[None, i : i + 1], position_ids=place[None], past_key_values=rolling, use_cache=True
        ).logits
        parts.append(token_nll(logits, tokens[None, i + 1 : i + 2])[0].cpu())
    return torch.cat(parts)
