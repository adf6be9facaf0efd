"""The band of a chunk in one fused kernel on a GPU (FlexAttention), with its log-sum-exp and no mask in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from sinktrain.streaming.kernels import Scores, score_dtype

BLOCK = 128
"""Queries and keys a block of the kernel: those wholly outside the band are not touched."""


def can_fuse(query: Tensor) -> bool:
    """Whether the kernel takes these (B, H, L, D): on a GPU, not in float64, in heads of at least 16."""
    return query.is_cuda and query.dtype != torch.float64 and query.shape[-1] >= 16


def fused_band(
    query: Tensor, keys: Tensor, values: Tensor, recent: int | None, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Attention to the keys at a distance of at most y.

    Args:
        query: (B, H, L, D), the last L of the positions of `keys`.
        keys: (B, H_kv, N, D).
        values: (B, H_kv, N, D_v).
        recent: y; None for no bound.
        scores: how they are made.

    Returns:
        The output (B, H, L, D_v) and the log-sum-exp (B, H, L).
    """
    # A tensor: a number would be built into the kernel, and each new one would compile it anew.
    ahead = torch.tensor(keys.shape[2] - query.shape[2], device=query.device)
    slopes = None if scores.slopes is None else scores.slopes.to(query.device, score_dtype(query))

    def score(found: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if scores.softcap is not None:
            found = scores.softcap * torch.tanh(found / scores.softcap)
        return found if slopes is None else found - slopes[h] * (ahead + i - j)

    plain = slopes is None and scores.softcap is None
    kernel: Any = flex_attention if torch.compiler.is_compiling() else _kernel(query.is_cuda)
    output, more = kernel(
        query,
        keys,
        values,
        score_mod=None if plain else score,
        block_mask=_blocks(query.shape[2], keys.shape[2], recent, query.device, keys.requires_grad),
        scale=scores.scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return output, more.lse


@functools.cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    kernel: Any = flex_attention
    return torch.compile(kernel) if compiled else kernel


@functools.lru_cache(maxsize=8)
def _blocks(length: int, total: int, recent: int | None, device: torch.device, trained: bool = False) -> BlockMask:
    """Which blocks of keys a block of queries touches, and which of these lie wholly inside the band.

    Training needs it the other way round too: which blocks of queries a block of keys is touched by.
    """
    with torch.inference_mode(False):  # it is kept, and may be asked for in a validation first
        return _made_blocks(length, total, recent, device, trained)


def _made_blocks(length: int, total: int, recent: int | None, device: torch.device, trained: bool) -> BlockMask:
    ahead = total - length
    most = total if recent is None else recent
    first_query = ahead + BLOCK * torch.arange(-(-length // BLOCK), device=device)[:, None]
    first_key = BLOCK * torch.arange(-(-total // BLOCK), device=device)
    last_query = (first_query + BLOCK).clamp(max=total) - 1
    nearest, farthest = first_query - (first_key + BLOCK - 1), last_query - first_key
    touched = (farthest >= 0) & (first_query - (first_key + BLOCK - 1) <= most)
    inside = (
        (nearest >= 0) & (farthest <= most) & (first_key + BLOCK <= total) & (last_query - first_query == BLOCK - 1)
    )

    offset, bound = (torch.tensor(value, device=device) for value in (ahead, most))

    def in_band(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        distance = offset + i - j
        return (distance >= 0) & (distance <= bound)

    return BlockMask.from_kv_blocks(
        *_listed(touched & ~inside),
        *_listed(inside),
        BLOCK_SIZE=BLOCK,
        mask_mod=in_band,
        seq_lengths=(length, total),
        compute_q_blocks=trained,
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) bool to how many there are in each row and which, these first: (1, 1, rows[, columns])."""
    count = blocks.sum(dim=1, dtype=torch.int32)
    which = (~blocks).to(torch.int8).argsort(dim=1, stable=True).to(torch.int32)
    return count[None, None], which[None, None]
