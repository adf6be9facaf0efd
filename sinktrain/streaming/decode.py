"""One new token: one attention over the ring."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sinktrain.streaming.kernels import Scores, attention_with_lse, fold, score_dtype
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.step import Step


def decode_attention(
    layer: SinkLayer,
    step: Step,
    rotary: Rotary | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Scores,
    need_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Stores the token and attends: query (B, H, 1, D), key and value (B, H_kv, 1, D), unrotated.

    Returns:
        The output (B, H, 1, D_v), and the log-sum-exp (B, H, 1) where it is needed.
    """
    raw = key
    if rotary is not None:
        both = rotary.rotate(torch.cat((query, key), dim=1), step.tokens(rotary, query.dtype))
        query, key = both[:, : query.shape[1]], both[:, query.shape[1] :].detach()
    layer.write_one(raw, key, value, step)
    keys, values = layer.keys, layer.values
    assert keys is not None and values is not None and layer.pristine is not None
    if layer.sinks and rotary is not None and step.rule == "cache":
        moved = rotary.rotate(layer.pristine[:, :, : layer.sinks], step.moved_sinks(rotary, query.dtype))
        keys[:, :, : layer.sinks].copy_(moved)
    if layer.recent is None:  # a dense cache has rows in reserve
        used = int(step.seen.max()) + 1
        keys, values = keys[:, :, :used], values[:, :, :used]
    if need_lse or scores.softcap is not None or scores.slopes is not None:
        bias = _row_bias(layer, step, scores, keys, score_dtype(query))
        return attention_with_lse(query, keys, values, bias, scores)
    seen = None
    if not step.filled or layer.window is not None:  # of bool: not every kernel takes float32 beside bfloat16
        seen = _rows_seen(layer, step, keys.shape[2])[1][:, None, None]
    output = F.scaled_dot_product_attention(
        fold(query, keys.shape[1]), keys, values, attn_mask=seen, scale=scores.scaling
    )
    return output.reshape(*query.shape[:3], -1), None


def _row_bias(layer: SinkLayer, step: Step, scores: Scores, keys: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of the rows; None when all of them are seen alike."""
    if step.filled and layer.window is None and scores.slopes is None:
        return None
    distance, seen = _rows_seen(layer, step, keys.shape[2])
    return scores.bias(distance[:, None], seen[:, None], keys.shape[1], dtype)


def _rows_seen(layer: SinkLayer, step: Step, rows: int) -> tuple[Tensor, Tensor]:
    """For the query at `step.positions`: the distance (B, N) of what each row holds, and whether it is seen."""
    shape = (layer.sinks, rows, layer.window)
    if shape not in step.rows_seen:  # the same for all layers of that shape
        step.rows_seen[shape] = _see_rows(layer, step, rows)
    return step.rows_seen[shape]


def _see_rows(layer: SinkLayer, step: Step, rows: int) -> tuple[Tensor, Tensor]:
    position, x = step.positions, layer.sinks
    ring = torch.arange(rows - x, device=position.device)
    size = layer.ring if layer.recent is not None else rows
    in_ring = (position - x - ring) % size  # the newest position that this row can hold is that far back
    own = torch.arange(x, device=position.device)
    to_sinks = step.in_cache(position) - own
    sinks_seen = own <= position
    if layer.window is not None:
        sinks_seen &= to_sinks < layer.window
    return torch.cat((to_sinks, in_ring), dim=1), torch.cat((sinks_seen, in_ring <= position - x), dim=1)
