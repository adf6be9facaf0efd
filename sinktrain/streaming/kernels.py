"""Softmax attention with its log-sum-exp, and the merging of parts of one softmax.

Heads that share a key head are folded: queries (B, H, L, D) become (B, H_kv, G * L, D), so that no key is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 128
"""Queries a block: its rectangle of ROWS + y keys wastes at most ROWS / (ROWS + y) of its work outside the band."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How a layer turns the product of a query and a key at a distance into a score.

    Args:
        scaling: multiplies the product.
        softcap: c, then turns s into c tanh(s / c) (Gemma 2, arXiv 2408.00118, section 2.3).
        slopes: (H,) of ALiBi: the distance times the slope is taken off (arXiv 2108.12409, section 3).
    """

    scaling: float
    softcap: float | None = None
    slopes: Tensor | None = None

    def bias(self, distance: Tensor, seen: Tensor, key_heads: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of L queries and N keys, 0 or ALiBi's penalty, -inf where a key is not seen.

        Args:
            distance: (B or 1, L, N) from key to query.
            seen: the same shape, bool.
            key_heads: H_kv.
            dtype: of the scores.

        Returns:
            (B or 1, 1 or H_kv, L or G * L, N): with ALiBi each of the G heads of a key head has its own, see `fold`.
        """
        hidden = torch.zeros_like(distance, dtype=dtype).masked_fill(~seen, float("-inf"))[:, None]
        if self.slopes is None:
            return hidden
        penalty = self.slopes.to(distance.device, dtype)[:, None, None] * distance[:, None].to(dtype)  # (B, H, L, N)
        return fold(hidden - penalty, key_heads)


def score_dtype(x: Tensor) -> torch.dtype:
    """Scores and what is made of them are float32, as in a fused kernel; float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def fold(query: Tensor, key_heads: int) -> Tensor:
    """(B, H, L, D) to (B, H_kv, G * L, D)."""
    batch, _, _, width = query.shape
    return query.reshape(batch, key_heads, -1, width)


def attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Softmax attention with the log-sum-exp of its scores.

    Args:
        query: (B, H, L, D).
        key: (B, H_kv, N, D), H a multiple of H_kv.
        value: (B, H_kv, N, D_v).
        bias: broadcastable to (B, H_kv, G * L, N) with G = H / H_kv, added to the scores; each query sees some key.
        scores: their scaling and cap (slopes are in `bias`).

    Returns:
        The output (B, H, L, D_v) in the dtype of `value`, and the log-sum-exp (B, H, L), at least float32.
    """
    batch, heads, length, width = query.shape
    folded = fold(query, key.shape[1])
    if query.device.type == "cpu" and scores.softcap is None and width == value.shape[-1]:
        bias = bias if bias is None else bias.expand(*bias.shape[:-2], folded.shape[2], key.shape[2])
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            folded, key, value, 0.0, False, attn_mask=bias, scale=scores.scaling
        )
        # The kernel does not say in which layout it answers.
        return output.reshape(batch, heads, length, -1), lse.reshape(batch, heads, length)
    dtype = score_dtype(query)
    found = (folded.to(dtype) @ key.to(dtype).transpose(-1, -2)) * scores.scaling
    if scores.softcap is not None:
        found = scores.softcap * torch.tanh(found / scores.softcap)
    found = found if bias is None else found + bias
    lse = found.logsumexp(dim=-1)
    output = ((found - lse[..., None]).exp() @ value.to(dtype)).to(value.dtype)
    return output.view(batch, heads, length, -1), lse.view(batch, heads, length)


def merge(output: Tensor, lse: Tensor, scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Adds a few keys to a softmax that is done.

    Args:
        output: (B, H, L, D_v) of the softmax so far.
        lse: (B, H, L) its log-sum-exp, finite.
        scores: (B, H, L, x) of the keys to add, -inf where one is not seen.
        values: (B, H_kv, x, D_v).

    Returns:
        The output and log-sum-exp of the whole.
    """
    total = torch.logaddexp(lse, scores.logsumexp(dim=-1))
    weights = fold((scores - total[..., None]).exp(), values.shape[1])
    added = (weights @ values.to(weights.dtype)).view(output.shape)
    return torch.addcmul(added, output, (lse - total).exp()[..., None]).to(output.dtype), total
