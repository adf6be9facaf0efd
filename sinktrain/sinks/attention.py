"""Attention whose softmax has an outlet, for training: exact, with gradients, in one pass of a fused kernel.

Let S be the scores of a query, L = logsumexp(S), s the outlet's logit. The whole softmax is the plain one, O, scaled:

    L' = log(e^L + e^s),   O' = e^(L - L') O + e^(s - L') v,   where v is the outlet's value.

A flash kernel gives O and L. Its backward pass makes the weights e^(S - L) anew from the L it is given, and the
gradient of the scores from them and from D = <dO, O>. Given L' and O' in their place it is the backward pass of the
whole softmax, for queries, keys and values; what is left is

    ds = e^(s - L') (<dO, v> - <dO, O'>),   dv = sum of e^(s - L') dO over the queries.

On CPU that is done with the kernel's own two halves; on CUDA FlexAttention differentiates its log-sum-exp itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import outlet_logits, outlet_value, with_outlet


def sink_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers' `AttentionInterface`; the module has an outlet (see `outlet`).

    Args:
        module: the attention module.
        query: (B, H, L, D), rotated.
        key: (B, H_kv, N, D), rotated.
        value: (B, H_kv, N, D_v).
        attention_mask: (B or 1, 1, L, >= N), bool or added to the scores, or a BlockMask on CUDA; None for causal,
            where 1 < L < N are the first tokens of a cache that has room for N.
        scaling: multiplies the scores, by default D^-1/2.
        sliding_window: W; a query sees the keys at a distance below W, and the outlet.
        softcap: bounds the scores (Gemma 2), not the outlet's.
        dropout: of the weights; must be 0.
        **kwargs: whatever else transformers passes.

    Returns:
        The output (B, L, H, D_v), and None for the weights.

    Raises:
        UserError: there is dropout.
    """
    if dropout:
        raise UserError(f"model.config: has attention dropout {dropout}, which no outlet knows; set it to 0.")
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits, own = outlet_logits(module, query, scale), outlet_value(module, query.shape[1])
    assert logits is not None
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attention_mask is None and 1 < query.shape[2] < key.shape[2]:
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    window = None if sliding_window is None or sliding_window >= key.shape[2] else sliding_window
    fits = softcap is None and query.shape[-1] == value.shape[-1]
    if fits and attention_mask is None and can_fuse(query, key):
        attention_mask = causal_blocks(key.shape[2], window, query.device)
    if isinstance(attention_mask, BlockMask):
        output = _fused(query, key, value, logits, own, attention_mask, scale)
    else:
        if (groups := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        causal = attention_mask is None and window is None and query.shape[2] == key.shape[2]
        bias = None if causal else _bias(query, key, attention_mask, window)
        if fits and device == "cpu":
            output = _flash(query, key, value, logits, own, bias, causal, scale)
        else:
            output = _written_out(query, key, value, logits, own, bias, scale, softcap)
    return output.transpose(1, 2).contiguous(), None


def can_fuse(query: Tensor, key: Tensor) -> bool:
    """Whether FlexAttention takes them: a whole text on CUDA, not in float64, in heads of at least 16."""
    whole = query.shape[2] == key.shape[2]
    return query.is_cuda and query.dtype != torch.float64 and query.shape[-1] >= 16 and whole


@functools.lru_cache(maxsize=16)
def causal_blocks(length: int, window: int | None, device: torch.device) -> BlockMask:
    """The BlockMask of causal attention over `length` positions, in a window or not."""

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) if window is None else (i >= j) & (i - j < window)

    with torch.inference_mode(False):  # it is kept, and may be asked for in a validation first
        return create_block_mask(seen, None, None, length, length, device=str(device))


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, logits: Tensor, own: Tensor | None, mask: BlockMask, scale: float
) -> Tensor:
    kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    gqa = query.shape[1] != key.shape[1]
    output, more = kernel(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=gqa, return_aux=AuxRequest(lse=True)
    )
    return with_outlet(output, more.lse, logits, own)


def _bias(query: Tensor, key: Tensor, mask: Tensor | None, window: int | None) -> Tensor | None:
    """What is added to the scores: (B or 1, 1, L, N), in the dtype of `query`; None where all keys are seen."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None and window is None and queries == 1:
        return None
    distance = keys - queries + torch.arange(queries, device=query.device)[:, None]
    distance = distance - torch.arange(keys, device=query.device)
    seen = torch.ones_like(distance, dtype=torch.bool) if mask is not None else distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    if mask is not None:
        mask = mask[..., :keys]
        if mask.dtype != torch.bool:
            bias = mask.to(query.dtype).masked_fill(~seen, float("-inf"))
            return bias.masked_fill(bias.isneginf().all(dim=-1, keepdim=True), 0.0)
        seen = seen & mask
    seen = seen | ~seen.any(dim=-1, keepdim=True)  # what padding itself sees is nobody's, but must be a number
    bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, float("-inf"))
    return bias.expand(1 if bias.dim() == 2 else len(bias), 1, queries, keys)


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    logits: Tensor,
    own: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """All scores in memory, in at least float32: for devices and options without a kernel."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(dtype) @ key.to(dtype).mT * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is None and query.shape[2] > 1:
            bias = torch.full_like(scores[:1, :1], float("-inf")).triu(1)
        scores = scores if bias is None else scores + bias
        lse = scores.logsumexp(dim=-1)
        output = (scores - lse[..., None]).exp() @ value.to(dtype)
        return with_outlet(output, lse, logits, own).to(value.dtype)


class _Flash(torch.autograd.Function):
    """The flash kernel of the CPU: queries, keys, values (B, H, L or N, D), bias (B or 1, 1, L, N) without gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        logits: Tensor,
        own: Tensor | None,
        bias: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        total = torch.logaddexp(lse, logits.to(lse.dtype))
        whole = with_outlet(output, lse, logits, own)
        ctx.save_for_backward(query, key, value, logits, own, bias, whole, total)
        ctx.causal, ctx.scale = causal, scale
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, logits, own, bias, whole, total = ctx.saved_tensors
        gradient = gradients[0].to(whole.dtype)
        d_query, d_key, d_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, whole, total, 0.0, ctx.causal, attn_mask=bias, scale=ctx.scale
        )
        wide = gradient.to(total.dtype)
        share = (logits.to(total.dtype) - total).exp()
        reached = -(wide * whole).sum(dim=-1)
        d_own = None
        if own is not None:
            reached = reached + (wide * own.to(total.dtype)[:, None]).sum(dim=-1)
            d_own = (share[..., None] * wide).sum(dim=(0, 2)).to(own.dtype)
        d_logits = (share * reached).sum_to_size(logits.shape).to(logits.dtype)
        return d_query, d_key, d_value, d_logits, d_own, None, None, None


_flash: Callable[..., Tensor] = _Flash.apply
