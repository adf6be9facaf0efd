"""The softmax of a band and a few extra terms, in blocks of queries, with gradients: for training on a CPU.

A block of ROWS queries at i, i+1 ... looks at the slice of keys i - y ... i + ROWS - 1, so that time is
O(T (ROWS + y)) and memory O(T). Let O and L be the output of a block and its log-sum-exp, s_e and v_e the scores and
values of the extra terms (sinks that have left the band, an outlet). The whole softmax is

    L' = log(e^L + sum of e^s_e),   O' = e^(L - L') O + sum of e^(s_e - L') v_e.

As in `sinktrain.sinks.attention`, the backward pass of a flash kernel that is given L' and O' in place of L and O is
that of the whole softmax, for queries, keys and values of the band. So nothing else is kept; what is left is

    ds_e = e^(s_e - L') (<dO, v_e> - <dO, O'>),   dv_e = sum of e^(s_e - L') dO over the queries.

Both halves are operators of torch, which `torch.compile` takes as they are instead of unrolling their loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sinktrain.streaming.kernels import ROWS, Scores, attention_with_lse, fold, merge, score_dtype


@torch.library.custom_op("sinktrain::band", mutates_args=())
def band(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extra: Tensor,
    extra_value: Tensor,
    slopes: Tensor | None,
    recent: int,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention of each query to the keys at a distance of at most y and to the extra terms.

    Args:
        query: (B, H, T, D).
        key: (B, H_kv, T, D), H a multiple of H_kv.
        value: (B, H_kv, T, D_v).
        extra: (B, H, T, E) scores of the extra terms, -inf where one is not seen, in at least float32.
        extra_value: (B, H_kv, E, D_v).
        slopes: (H,) of ALiBi, without a gradient.
        recent: y.
        scaling: multiplies the product of query and key.
        softcap: bounds the scores of the band.

    Returns:
        The output (B, H, T, D_v) in the dtype of `value`, and the log-sum-exp (B, H, T), at least float32, which has no
        gradient.
    """
    scores = Scores(scaling, softcap, slopes)
    output = value.new_empty(*query.shape[:3], value.shape[3])
    total = query.new_empty(query.shape[:3], dtype=score_dtype(query))
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys, bias in _blocks(query, key, recent, scores):
            found, lse = attention_with_lse(query[:, :, rows], key[:, :, keys], value[:, :, keys], bias, scores)
            if extra.shape[3]:
                found, lse = merge(found, lse, extra[:, :, rows], extra_value)
            output[:, :, rows], total[:, :, rows] = found, lse
    return output, total


@torch.library.custom_op("sinktrain::band_backward", mutates_args=())
def band_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extra: Tensor,
    extra_value: Tensor,
    slopes: Tensor | None,
    output: Tensor,
    total: Tensor,
    recent: int,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, extra and extra_value, from that of the output (B, H, T, D_v)."""
    scores, wide = Scores(scaling, softcap, slopes), total.dtype
    # All are contiguous, whatever the inputs are: that is what their shapes tell a compiler.
    d_query, d_extra = query.new_empty(query.shape), extra.new_empty(extra.shape)
    # Each key is in several blocks: their parts are added up in at least float32.
    d_key, d_value, d_extra_value = (x.new_zeros(x.shape, dtype=wide) for x in (key, value, extra_value))
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys, bias in _blocks(query, key, recent, scores):
            above = gradient[:, :, rows].to(output.dtype)
            part = (above, query[:, :, rows], key[:, :, keys], value[:, :, keys], output[:, :, rows], total[:, :, rows])
            d_query[:, :, rows], added_key, added_value = _block_backward(*part, bias, scores)
            d_key[:, :, keys] += added_key
            d_value[:, :, keys] += added_value
            if extra.shape[3]:
                d_extra[:, :, rows], added = _extra_backward(above, *part[4:], extra[:, :, rows], extra_value)
                d_extra_value += added
    return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_extra, d_extra_value.to(extra_value.dtype)


def _blocks(query: Tensor, key: Tensor, recent: int, scores: Scores) -> Iterator[tuple[slice, slice, Tensor]]:
    """For each block: its queries, the keys that they see, and the bias; blocks alike share one."""
    heads, groups, device = key.shape[1], query.shape[1] // key.shape[1], query.device
    kept: tuple[tuple[int, int], Tensor] | None = None
    for begin in range(0, query.shape[2], ROWS):
        end = min(begin + ROWS, query.shape[2])
        first = max(0, begin - recent)
        shape = (end - begin, end - first)
        if kept is None or kept[0] != shape:
            ahead = begin - first
            distance = ahead + torch.arange(shape[0], device=device)[:, None] - torch.arange(shape[1], device=device)
            bias = scores.bias(distance[None], in_band(distance, recent)[None], heads, score_dtype(query))
            if bias.shape[2] == shape[0]:  # the same for the heads that share a key head
                bias = bias.repeat(1, 1, groups, 1)
            kept = shape, bias
        yield slice(begin, end), slice(first, end), kept[1]


def in_band(distance: Tensor, recent: int) -> Tensor:
    """Which of these distances from key to query are in a band of y keys and the query's own."""
    return (distance >= 0) & (distance <= recent)


def _block_backward(
    above: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    bias: Tensor,
    scores: Scores,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a block's query, key and value, from those of the whole softmax's output."""
    heads = key.shape[1]
    above, folded, output = (fold(x, heads) for x in (above, query, output))
    total = total.reshape(*total.shape[:1], heads, -1)
    if query.device.type == "cpu" and scores.softcap is None and query.shape[-1] == value.shape[-1]:
        bias = bias.expand(*bias.shape[:-2], folded.shape[2], key.shape[2])
        d_query, d_key, d_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            above, folded, key, value, output, total, 0.0, False, attn_mask=bias, scale=scores.scaling
        )
        return d_query.reshape(query.shape), d_key, d_value
    above, folded, key, value = (x.to(total.dtype) for x in (above, folded, key, value))
    found, slope = folded @ key.mT * scores.scaling, None
    if scores.softcap is not None:
        capped = torch.tanh(found / scores.softcap)
        found, slope = scores.softcap * capped, 1 - capped.square()
    weights = (found + bias - total[..., None]).exp()
    d_scores = weights * (above @ value.mT - (above * output).sum(dim=-1, keepdim=True))
    d_scores = d_scores * scores.scaling if slope is None else d_scores * slope * scores.scaling
    return (d_scores @ key).view(query.shape), d_scores.mT @ folded, weights.mT @ above


def _extra_backward(
    above: Tensor, output: Tensor, total: Tensor, extra: Tensor, extra_value: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of a block's extra scores, and its part of that of their values."""
    above, heads = above.to(total.dtype), extra_value.shape[1]
    weights = (extra - total[..., None]).exp()
    reached = (fold(above, heads) @ extra_value.to(total.dtype).mT).view(weights.shape)
    d_extra = weights * (reached - (above * output).sum(dim=-1, keepdim=True))
    return d_extra, fold(weights, heads).mT @ fold(above, heads)


@band.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    output = value.new_empty(*query.shape[:3], value.shape[3])
    return output, query.new_empty(query.shape[:3], dtype=score_dtype(query))


@band_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, extra: Tensor, extra_value: Tensor, *rest: Any
) -> Any:
    return tuple(x.new_empty(x.shape) for x in (query, key, value, extra, extra_value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.recent, ctx.scaling, ctx.softcap = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = band_backward(gradient, *ctx.saved_tensors, ctx.recent, ctx.scaling, ctx.softcap)
    return (*found, None, None, None, None)


band.register_autograd(_differentiate, setup_context=_keep)
