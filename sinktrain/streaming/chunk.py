"""A chunk of new tokens: the band of recent keys in blocks, and the sinks that have left it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sinktrain.streaming.fused import can_fuse, fused_band
from sinktrain.streaming.kernels import ROWS, Scores, attention_with_lse, fold, merge, score_dtype
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.padded import padded_band
from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.step import Step

if TYPE_CHECKING:
    from sinktrain.streaming.cache import SinkCache


def chunk_attention(
    stream: SinkCache,
    layer: SinkLayer,
    step: Step,
    rotary: Rotary | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Scores,
) -> tuple[Tensor, Tensor]:
    """Stores the tokens and attends: query (B, H, L, D), key and value (B, H_kv, L, D), unrotated.

    Returns:
        The output (B, H, L, D_v) and the log-sum-exp (B, H, L).
    """
    raw_query, raw_key = query, key
    if rotary is not None:
        table = step.tokens(rotary, query.dtype)
        query, key = rotary.rotate(query, table), rotary.rotate(key, table)
    if step.start is None:
        output, lse = padded_band(layer, step, query, raw_key, key, value, scores)
    else:
        keys, values = _with_recent(layer, step.start, raw_key, key, value)
        output, lse = _band(stream, layer, step.start, query, keys, values, scores)
    last = int(step.seen.max()) + query.shape[2] - 1
    if layer.sinks and layer.recent is not None and last > layer.recent:
        output, lse = _merge_sinks(layer, step, rotary, raw_query, output, lse, scores)
    return output, lse


def _with_recent(layer: SinkLayer, start: int, raw: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Stores the tokens start ... start+L-1; their keys and values after those of the (at most y) tokens before."""
    assert layer.keys is not None and layer.values is not None
    if start + key.shape[2] <= layer.rows:  # nothing has wrapped round: row p holds position p
        layer.write_many(raw, key, value, start)
        return layer.keys[:, :, : start + key.shape[2]], layer.values[:, :, : start + key.shape[2]]
    assert layer.recent is not None
    rows = layer.row_of(torch.arange(max(0, start - layer.recent), start, device=key.device))
    keys = torch.cat((layer.keys.index_select(2, rows), key), dim=2)
    values = torch.cat((layer.values.index_select(2, rows), value), dim=2)
    layer.write_many(raw, key, value, start)
    return keys, values


def _band(
    stream: SinkCache, layer: SinkLayer, start: int, query: Tensor, keys: Tensor, values: Tensor, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Attention to the keys at a distance of at most y: one fused kernel, or blocks of ROWS queries."""
    if can_fuse(query):
        return fused_band(query, keys, values, layer.recent, scores)
    length, carried = query.shape[2], keys.shape[2] - query.shape[2]
    outputs, sums = [], []
    for begin in range(0, length, ROWS):
        end = min(begin + ROWS, length)
        first = 0 if layer.recent is None else max(0, carried + begin - layer.recent)
        bias = _band_bias(
            stream, layer, end - begin, carried + end - first, carried + begin - first, query, keys, scores
        )
        output, lse = attention_with_lse(
            query[:, :, begin:end], keys[:, :, first : carried + end], values[:, :, first : carried + end], bias, scores
        )
        outputs.append(output)
        sums.append(lse)
    return (outputs[0], sums[0]) if len(outputs) == 1 else (torch.cat(outputs, dim=2), torch.cat(sums, dim=2))


def _band_bias(
    stream: SinkCache, layer: SinkLayer, rows: int, keys: int, ahead: int, query: Tensor, key: Tensor, scores: Scores
) -> Tensor:
    """The bias of a block whose first query stands `ahead` places after the first key; kept for later blocks."""
    groups = query.shape[1] // key.shape[1]
    shape = (rows, keys, ahead, layer.recent, groups, query.dtype, query.device)
    kept = stream.masks
    if layer.recent is None:  # a dense cache has new shapes in each chunk
        assert stream.step is not None
        kept = stream.step.masks
    if (bias := kept.get(shape)) is None:
        distance = ahead + torch.arange(rows, device=query.device)[:, None] - torch.arange(keys, device=query.device)
        seen = distance >= 0 if layer.recent is None else (distance >= 0) & (distance <= layer.recent)
        bias = scores.bias(distance[None], seen[None], key.shape[1], score_dtype(query))
        if bias.shape[2] == rows:  # the same for the heads that share a key head
            bias = bias.repeat(1, 1, groups, 1)
        if len(stream.masks) >= 8:  # one for each kind of layer and block once the cache is full
            stream.masks.clear()
        kept[shape] = bias
    return bias


def _merge_sinks(
    layer: SinkLayer,
    step: Step,
    rotary: Rotary | None,
    query: Tensor,
    output: Tensor,
    lse: Tensor,
    scores: Scores,
) -> tuple[Tensor, Tensor]:
    """Adds the sinks that have left the band; query (B, H, L, D) is unrotated."""
    assert layer.pristine is not None and layer.values is not None and layer.recent is not None
    sinks = layer.pristine[:, :, : layer.sinks]
    if rotary is not None:
        if not step.all_left:  # else turning the few sinks does for all queries
            query = rotary.rotate(query, step.for_sinks(rotary, query.dtype))
        sinks = rotary.rotate(sinks, step.sinks(rotary, query.dtype))
    batch, heads, length, _ = query.shape
    own = torch.arange(layer.sinks, device=query.device)
    position = step.positions[..., None]  # (B or 1, L, 1)
    distance = step.in_cache(position) - own
    seen = position - own > layer.recent
    if layer.window is not None:
        seen &= distance < layer.window
    products = fold(query, sinks.shape[1]).to(lse.dtype) @ sinks.to(lse.dtype).transpose(-1, -2)
    found = products.view(batch, heads, length, -1) * scores.scaling
    if scores.softcap is not None:
        found = scores.softcap * torch.tanh(found / scores.softcap)
    if scores.slopes is not None:
        found = found - scores.slopes.to(lse)[:, None, None] * distance[:, None].to(lse.dtype)
    found = found.masked_fill(~seen[:, None], float("-inf"))
    return merge(output, lse, found, layer.values[:, :, : layer.sinks])
