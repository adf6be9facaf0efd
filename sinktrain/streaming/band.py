"""What a whole sample sees in a streaming cache, with gradients: the attention of training with a band.

Queries and keys (B, H or H_kv, T, D) come rotated at their positions 0 ... T-1. A query at i sees, as in `CacheSpec`,

- the band: the keys j <= i with i - j <= y, as they are;
- the sinks that have left it (j < x, i - j > y), at distance min(i, C) - j under the `cache` rule: the query is turned
  back by i - min(i, C). Under the `original` rule it stays as it is.

The sinks are few, so their scores are written out, (B, H, T, x), and enter the softmax of the band as extra terms. So
does an outlet. No cache is written, and no mask as large as T x T is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sinktrain.sinks.outlet import has_outlet, outlet_logits, outlet_value
from sinktrain.streaming.blocks import band as band_in_blocks
from sinktrain.streaming.fused import can_fuse, fused_band
from sinktrain.streaming.kernels import Scores, fold, score_dtype
from sinktrain.streaming.positions import Positions
from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.spec import CacheSpec, PositionRule
from sinktrain.streaming.step import Table


@dataclass(eq=False)
class Band:
    """What every attention module is told.

    Args:
        spec: the cache, not `dense`.
        rule: which distance the sinks are seen at.
        positions: how the model encodes positions.
        tables: angles, made when they are first asked for.
    """

    spec: CacheSpec
    rule: PositionRule
    positions: Positions
    tables: dict[tuple[object, ...], Table] = field(default_factory=dict)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores, **more: Any
    ) -> Tensor:
        """Attention of a whole sample: query (B, H, T, D), key and value (B, H_kv, T, D or D_v); gives (B, H, T, D_v).

        Args:
            module: the attention module, which knows its layer and its outlet.
            query: rotated, as are the keys.
            key: of the same T positions.
            value: of these.
            scores: how they are made.
            **more: `window`, if the layer has one of its own; `s_aux` (H,), its sink logits (gpt-oss).
        """
        window, s_aux = more.get("window"), more.get("s_aux")
        sinks, recent = self.spec.sinks, self.spec.recent
        assert recent is not None
        if window is not None and window <= recent:  # it never sees a sink beyond the window
            sinks, recent, window = 0, window - 1, None
        turned = self._turned(self._rotary(module), query)
        device, heads = query.device.type, key.shape[1]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        extra, values = [], []
        if sinks and query.shape[2] > recent + 1:
            extra.append(self._sink_scores(turned.to(dtype), key[:, :, :sinks], window, scores))
            values.append(value[:, :, :sinks])
        if s_aux is not None or has_outlet(module):
            logits = outlet_logits(module, turned, scores.scaling) if s_aux is None else s_aux[None, :, None]
            assert logits is not None
            own = outlet_value(module, heads)
            extra.append(logits.to(score_dtype(query)).expand(query.shape[:3])[..., None])
            own = value.new_zeros(heads, value.shape[3]) if own is None else own.to(dtype)
            values.append(own[None, :, None].expand(len(value), -1, -1, -1))
        joined = torch.cat(extra, dim=3) if extra else query.new_empty(*query.shape[:3], 0, dtype=score_dtype(query))
        return _attend(
            query, key, value, joined, torch.cat(values, dim=2) if values else value[:, :, :0], recent, scores
        )

    def rotated(self, module: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of a module that does not rotate them itself."""
        rotary = self._rotary(module)
        if rotary is None:
            return query, key
        table = self._table(rotary, "places", query)
        return rotary.rotate(query, table), rotary.rotate(key, table)

    def _rotary(self, module: nn.Module) -> Rotary | None:
        return self.positions.rotary[int(module.layer_idx)]  # type: ignore[arg-type]

    def in_cache(self, positions: Tensor) -> Tensor:
        """Where a query at `positions` stands as the sinks see it."""
        return positions if self.rule == "original" else positions.clamp(max=self.spec.size)

    def _turned(self, rotary: Rotary | None, query: Tensor) -> Tensor:
        """The queries as a key at the start of the sample sees them."""
        length, size = query.shape[2], self.spec.size
        assert size is not None
        if rotary is None or self.rule == "original" or length <= size + 1:
            return query
        return rotary.rotate(query, self._table(rotary, "back", query))

    def _table(self, rotary: Rotary, name: Literal["places", "back"], query: Tensor) -> Table:
        """Angles of the positions i, or those that turn back to min(i, C), (T, R); the same for layers alike."""
        kept = {} if torch.compiler.is_compiling() else self.tables
        length, device, dtype = query.shape[2], query.device, score_dtype(query)
        key = (id(rotary), name, length, device, dtype)
        if key not in kept:
            if len(kept) >= 8:
                kept.clear()
            with torch.inference_mode(False):  # it may be asked for in a validation first
                places = torch.arange(length, device=device)
                kept[key] = rotary.table(places if name == "places" else self.in_cache(places) - places, dtype)
        return kept[key]

    def _sink_scores(self, query: Tensor, sinks: Tensor, window: int | None, scores: Scores) -> Tensor:
        """Scores (B, H, T, x) of the sinks that have left the band; query (B, H, T, D) is turned, -inf elsewhere."""
        found: Tensor = sink_products(query, sinks) * scores.scaling
        if scores.softcap is not None:
            found = scores.softcap * torch.tanh(found / scores.softcap)
        places = torch.arange(query.shape[2], device=query.device)[:, None]
        own = torch.arange(sinks.shape[2], device=query.device)
        distance = self.in_cache(places) - own
        seen = places - own > (self.spec.recent or 0)
        if window is not None:
            seen = seen & (distance < window)
        if scores.slopes is not None:
            found = found - scores.slopes.to(found)[:, None, None] * distance.to(found.dtype)
        return found.masked_fill(~seen, float("-inf"))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, extra: Tensor, extra_value: Tensor, recent: int, scores: Scores
) -> Tensor:
    """One softmax over the band of y and the extra terms; see `sinktrain.streaming.blocks.band`."""
    if not can_fuse(query) or query.shape[-1] != value.shape[-1]:
        slopes = None if scores.slopes is None else scores.slopes.to(query.device)
        output: Tensor = band_in_blocks(
            query, key, value, extra, extra_value, slopes, recent, scores.scaling, scores.softcap
        )[0]
        return output
    output, lse = fused_band(query, key, value, recent, scores)
    if not extra.shape[3]:
        return output
    with torch.autocast(query.device.type, enabled=False):
        weights = torch.cat((lse[..., None], extra), dim=3).softmax(dim=3)
        added = (fold(weights[..., 1:], key.shape[1]) @ extra_value.to(weights.dtype)).view(output.shape)
        return torch.addcmul(added, output.to(weights.dtype), weights[..., :1]).to(value.dtype)


class _Products(torch.autograd.Function):
    """In at least float32, without a copy in that dtype kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, sinks: Tensor) -> Tensor:
        ctx.save_for_backward(query, sinks)
        wide = score_dtype(query)
        with torch.autocast(query.device.type, enabled=False):
            found = fold(query, sinks.shape[1]).to(wide) @ sinks.to(wide).mT
        return found.view(*query.shape[:3], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, sinks = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            gradient = fold(gradients[0], sinks.shape[1])
            d_query = (gradient @ sinks.to(gradient.dtype)).view(query.shape).to(query.dtype)
            d_sinks = gradient.mT @ fold(query, sinks.shape[1]).to(gradient.dtype)
        return d_query, d_sinks.to(sinks.dtype)


sink_products: Any = _Products.apply
"""The products (B, H, T, x) of queries (B, H, T, D) and the keys of the sinks (B, H_kv, x, D)."""
