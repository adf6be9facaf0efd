"""A chunk whose rows are not in step: batches with padding. Correct for padding anywhere; a prompt's worth of work."""

from __future__ import annotations

import torch
from torch import Tensor

from sinktrain.streaming.kernels import ROWS, Scores, attention_with_lse, score_dtype
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.step import Step


def padded_band(
    layer: SinkLayer, step: Step, query: Tensor, raw: Tensor, key: Tensor, value: Tensor, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Stores the tokens that are no padding and attends to the keys at a distance of at most y.

    Args:
        layer: of the cache.
        step: where the tokens stand; `positions` (B or 1, L).
        query: (B, H, L, D), rotated.
        raw: (B, H_kv, L, D) keys, unrotated.
        key: the same, rotated.
        value: (B, H_kv, L, D_v).
        scores: how they are made.

    Returns:
        The output (B, H, L, D_v) and log-sum-exp (B, H, L). A padding token attends to itself alone.
    """
    assert layer.keys is not None and layer.values is not None
    batch, _, length, _ = query.shape
    positions = step.positions.expand(batch, length)
    valid = torch.ones_like(positions, dtype=torch.bool) if step.valid is None else step.valid
    carried = int(step.seen.max()) if layer.recent is None else min(int(step.seen.max()), layer.recent)
    before = step.seen[:, None] - carried + torch.arange(carried, device=query.device)  # (B, carried), < 0: none
    rows = layer.row_of(before.clamp(min=0))
    keys = torch.cat((_take(layer.keys, rows), key), dim=2)
    values = torch.cat((_take(layer.values, rows), value), dim=2)
    held = torch.cat((before, positions.masked_fill(~valid, -1)), dim=1)
    _write_padded(layer, step.seen, valid, raw, key, value)

    itself = carried + torch.arange(length, device=query.device)
    columns = torch.arange(carried + length, device=query.device)
    outputs, sums = [], []
    for begin in range(0, length, ROWS):
        block = slice(begin, begin + ROWS)
        distance = positions[:, block, None] - held[:, None]
        seen = (held[:, None] >= 0) & (distance >= 0) & valid[:, block, None]
        if layer.recent is not None:
            seen &= distance <= layer.recent
        seen |= columns == itself[block, None]
        bias = scores.bias(distance.clamp(min=0), seen, keys.shape[1], score_dtype(query))
        if scores.slopes is None:
            bias = bias.repeat(1, 1, query.shape[1] // keys.shape[1], 1)
        output, lse = attention_with_lse(query[:, :, block], keys, values, bias, scores)
        outputs.append(output)
        sums.append(lse)
    return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)


def _write_padded(layer: SinkLayer, before: Tensor, valid: Tensor, raw: Tensor, key: Tensor, value: Tensor) -> None:
    """Fills each row of the layer with the newest token that belongs there, if that is a new one.

    Args:
        layer: of the cache.
        before: (B,) tokens of each batch row so far.
        valid: (B, L) which new tokens are no padding.
        raw: (B, H_kv, L, D) keys, unrotated.
        key: the same, rotated.
        value: (B, H_kv, L, D_v).
    """
    assert layer.keys is not None and layer.values is not None and layer.pristine is not None
    x, before = layer.sinks, before[:, None]
    after = before + valid.sum(dim=1, keepdim=True)
    ring = torch.arange(layer.ring, device=key.device)
    newest = after - 1 - (after - 1 - x - ring) % layer.ring  # (B, ring) of the positions that this row can hold
    own = torch.arange(x, device=key.device).expand(len(before), x)
    wanted = torch.cat((own, newest), dim=1)
    new = (wanted >= before) & (wanted < after)
    new[:, x:] &= newest >= x
    in_order = (~valid).long().argsort(dim=1, stable=True)  # the columns of the tokens that are no padding come first
    column = in_order.gather(1, (wanted - before).clamp(0, valid.shape[1] - 1))
    for store, source in ((layer.keys, key), (layer.values, value)):
        store.copy_(torch.where(new[:, None, :, None], _take(source, column), store))
    sinks = layer.pristine[:, :, :x]
    sinks.copy_(torch.where(new[:, None, :x, None], _take(raw, column[:, :x]), sinks))


def _take(x: Tensor, columns: Tensor) -> Tensor:
    """(B, H, N, D) at `columns` (B, M): (B, H, M, D)."""
    return x.gather(2, columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
