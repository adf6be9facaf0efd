"""Chunk-parallel streaming attention, exactly equal to token-by-token decoding with a rolling cache.

Under the eviction rule (`CacheSpec`) the key and value of a token in every layer depend only on what that token saw
itself. So one banded pass over the text, in chunks of any size, gives what decoding one token at a time gives.

A query has two parts to look at:

- the band: the keys j with i - j <= y, at their own distance i - j;
- the sinks that have left the band (j < x, i - j > y), at distance min(i, C) - j under the `cache` rule and i - j
  under the `original` rule. The query is turned to min(i, C) (or i) for them, the sink keys stay as they were made.

The two parts merge by their log-sum-exp, so the whole is one softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from sinktrain.base.errors import UserError
from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.spec import CacheSpec, PositionRule

NAME = "sinktrain_stream"
"""The name under which the function stands in transformers' `AttentionInterface`."""

ROWS = 128
"""Queries a block: its rectangle of ROWS + y keys wastes at most ROWS / (ROWS + y) of its work outside the band."""


@dataclass
class LayerState:
    """What one layer keeps between chunks: sinks (B, H_kv, <=x, D) as made, recent keys (B, H_kv, <=y, D)."""

    sink_keys: Tensor | None = None
    sink_values: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


@dataclass
class StreamState:
    """A stream in progress; passed to the model as the keyword argument `stream`.

    Positions given to the model count from `base`, which moves forward with the stream, so that the float32 angles
    of the model stay as exact at token 4,000,000 as at token 4,000. When it moves, the recent keys are turned back
    once. Sinks were made while the base was 0, and are never touched.
    """

    cache: CacheSpec
    rotary: Rotary
    rule: PositionRule = "cache"
    rebase_after: int = 8192
    start: int = 0
    base: int = 0
    layers: dict[int, LayerState] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def positions(self, length: int, device: torch.device) -> Tensor:
        """The position ids (length,) of the next chunk, after moving the base if the chunk ends too far from it."""
        recent = self.cache.recent
        oldest = 0 if recent is None else max(0, self.start - recent)
        if self.start + length - self.base > self.rebase_after and oldest > max(self.base, self.cache.sinks):
            self._move_base(oldest)
        return torch.arange(self.start, self.start + length, device=device) - self.base

    def _move_base(self, base: int) -> None:
        for index, layer in self.layers.items():
            if layer.keys is not None and self.rotary.layers[index]:
                back = torch.tensor([self.base - base], device=layer.keys.device)
                layer.keys = self.rotary.turn(layer.keys, back).to(layer.keys.dtype)
        self.base = base

    def band_mask(self, rows: int, keys: int, ahead: int, like: Tensor) -> Tensor:
        """Additive mask (rows, keys) of a block whose first query stands `ahead` places after the first key."""
        if (mask := self._masks.get((rows, keys, ahead))) is None:
            distance = ahead + torch.arange(rows, device=like.device)[:, None] - torch.arange(keys, device=like.device)
            seen = distance >= 0 if self.cache.recent is None else (distance >= 0) & (distance <= self.cache.recent)
            mask = torch.zeros_like(distance, dtype=_score_dtype(like)).masked_fill(~seen, float("-inf"))
            if len(self._masks) > 64:  # the dense cache has a new shape for each block
                self._masks.clear()
            self._masks[rows, keys, ahead] = mask
        return mask


def stream_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    stream: StreamState,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (B, H, L, D), key and value (B, H_kv, L, D), rotated at `stream.positions`.

    Returns:
        The output (B, L, H, D), and None for the weights.

    Raises:
        UserError: the layer needs something that streaming does not have (a narrower window, a soft cap, sink logits).
    """
    _refuse_extras(module, stream, kwargs)
    index = int(module.layer_idx)  # type: ignore[arg-type]
    layer = stream.layers.setdefault(index, LayerState())
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    _keep_sinks(stream, layer, key, value)
    keys = key if layer.keys is None else torch.cat((layer.keys, key), dim=2)
    values = value if layer.values is None else torch.cat((layer.values, value), dim=2)
    output, lse = _band(stream, query, keys, values, scaling)
    recent = stream.cache.recent
    if recent is not None:
        if stream.start + query.shape[2] - 1 > recent and layer.sink_keys is not None:
            output = _add_sinks(stream, layer, stream.rotary.layers[index], query, output, lse, scaling)
        keys, values = keys[:, :, -recent:], values[:, :, -recent:]
    layer.keys, layer.values = keys.contiguous(), values.contiguous()
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, stream_attention)


def _refuse_extras(module: torch.nn.Module, stream: StreamState, kwargs: dict[str, Any]) -> None:
    window = kwargs.get("sliding_window")
    size = stream.cache.size
    if isinstance(window, int) and (size is None or window <= size):
        raise UserError(
            f"cache {stream.cache}: {type(module).__name__} attends to a sliding window of {window} tokens only; "
            f"choose a cache of fewer than {window} tokens."
        )
    for extra in ("softcap", "s_aux"):
        if kwargs.get(extra) is not None:
            raise UserError(f"model.name: {type(module).__name__} uses `{extra}`, which streaming here does not have.")


def _keep_sinks(stream: StreamState, layer: LayerState, key: Tensor, value: Tensor) -> None:
    """Copies the keys and values of positions below x, which arrive with the first chunk or chunks."""
    missing = stream.cache.sinks - stream.start
    if missing <= 0 or stream.cache.recent is None:
        return
    new_keys, new_values = key[:, :, :missing].clone(), value[:, :, :missing].clone()
    if layer.sink_keys is None or layer.sink_values is None:
        layer.sink_keys, layer.sink_values = new_keys, new_values
    else:
        layer.sink_keys = torch.cat((layer.sink_keys, new_keys), dim=2)
        layer.sink_values = torch.cat((layer.sink_values, new_values), dim=2)


def _band(stream: StreamState, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention within the band: output (B, H, L, D) and log-sum-exp (B, H, L), in blocks of ROWS queries."""
    length, carried = query.shape[2], keys.shape[2] - query.shape[2]
    outputs, sums = [], []
    for begin in range(0, length, ROWS):
        end = min(begin + ROWS, length)
        last = carried + end
        first = 0 if stream.cache.recent is None else max(0, carried + begin - stream.cache.recent)
        mask = stream.band_mask(end - begin, last - first, carried + begin - first, query)
        output, lse = attention_with_lse(
            query[:, :, begin:end], keys[:, :, first:last], values[:, :, first:last], mask, scaling
        )
        outputs.append(output)
        sums.append(lse)
    return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)


def _add_sinks(
    stream: StreamState, layer: LayerState, rotates: bool, query: Tensor, band: Tensor, lse: Tensor, scaling: float
) -> Tensor:
    """Merges the sinks that have left the band into the band's output (B, H, L, D)."""
    assert layer.sink_keys is not None and layer.sink_values is not None and stream.cache.recent is not None
    batch, heads, length, width = query.shape
    i = torch.arange(stream.start, stream.start + length, device=query.device)
    if rotates:
        target = i.clamp(max=stream.cache.size) if stream.rule == "cache" else i
        query = stream.rotary.turn(query, target - (i - stream.base))
    grouped = query.to(lse.dtype).view(batch, layer.sink_keys.shape[1], -1, length, width)  # queries share a key head
    keys, values = layer.sink_keys.to(lse.dtype)[:, :, None], layer.sink_values.to(lse.dtype)[:, :, None]
    scores = (grouped @ keys.transpose(-1, -2)).view(batch, heads, length, -1) * scaling
    j = torch.arange(keys.shape[-2], device=query.device)
    scores = scores.masked_fill(i[:, None] - j <= stream.cache.recent, float("-inf"))
    total = torch.logaddexp(lse, scores.logsumexp(dim=-1))[..., None]  # the band holds the query itself: never -inf
    weights = (scores - total).exp().view(batch, keys.shape[1], -1, length, keys.shape[-2])
    from_sinks = (weights @ values).view(batch, heads, length, -1)
    return (band.to(lse.dtype) * (lse[..., None] - total).exp() + from_sinks).to(band.dtype)


def attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention with the log-sum-exp of its scores.

    Args:
        query: (B, H, L, D).
        key: (B, H_kv, N, D), H a multiple of H_kv.
        value: (B, H_kv, N, D_v).
        mask: (L, N), added to the scores.
        scaling: multiplies the scores.

    Returns:
        The output (B, H, L, D_v) in the dtype of `value`, and the log-sum-exp (B, H, L), at least float32.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scaling
        )
        return output, lse
    dtype = _score_dtype(query)  # a fused kernel does not round scores to bf16 before the softmax either
    scores = (query.to(dtype) @ key.to(dtype).transpose(-1, -2)) * scaling
    scores = scores if mask is None else scores + mask
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def _score_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
