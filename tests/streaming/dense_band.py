"""What a streaming cache lets a query see, written out over T x T scores: what training with a band is compared with.

Nothing of sinktrain is in it. The rotation is a matrix for each query, which turns the keys of the sinks forward, where
a band turns the query back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotations(turns: Tensor, frequencies: Tensor, width: int) -> Tensor:
    """Matrices (T, D, D) that rotate a key by so many positions: pairs are (m, m + R/2), the rest stays."""
    half = len(frequencies)
    matrices = torch.eye(width, dtype=torch.float64).repeat(len(turns), 1, 1)
    for m, frequency in enumerate(frequencies.double()):
        angle = turns.double() * frequency
        matrices[:, m, m] = matrices[:, m + half, m + half] = angle.cos()
        matrices[:, m + half, m], matrices[:, m, m + half] = angle.sin(), -angle.sin()
    return matrices


def dense_band(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: tuple[int, int],
    scale: float,
    *,
    rule: str = "cache",
    frequencies: Tensor | None = None,
    slopes: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
    outlet: tuple[str, dict[str, Tensor]] | None = None,
) -> Tensor:
    """Output (B, H, T, D_v) of query (B, H, T, D), key and value (B, H_kv, T, .) that are rotated at 0 ... T-1."""
    x, y = cache
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(query.shape[2])
    place = i if rule == "original" else i.clamp(max=x + y)
    is_sink = (j < x) & (i - j > y)
    distance = torch.where(is_sink, place - j, i - j)
    seen = (j <= i) & ((j < x) | (i - j <= y))
    if window is not None:
        seen = seen & (distance < window)
    scores = query @ key.mT
    if frequencies is not None:
        turning = rotations((i - place)[:, 0], frequencies, query.shape[3])
        turned = torch.einsum("bhid,ide,bhje->bhij", query, turning, key)
        scores = torch.where(is_sink, turned, scores)
    scores = scores * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distance
    scores = scores.masked_fill(~seen, float("-inf"))
    if outlet is None:
        return scores.softmax(dim=-1) @ value
    kind, sinks = outlet
    logits = torch.zeros_like(scores[..., :1])
    if kind == "logit":
        logits = sinks["sinks"][None, :, None, None].expand_as(logits)
    if kind in ("kv", "k"):
        forward = rotations((i - place)[:, 0], torch.zeros(0) if frequencies is None else frequencies, query.shape[3])
        own = sinks["sink_key"].repeat_interleave(groups, dim=0)
        logits = torch.einsum("bhid,ide,he->bhi", query, forward, own)[..., None] * scale
    weights = torch.cat((logits, scores), dim=-1).softmax(dim=-1)
    output = weights[..., 1:] @ value
    if kind == "kv":
        output = output + weights[..., :1] * sinks["sink_value"].repeat_interleave(groups, dim=0)[:, None]
    return output


def dense_attention(cache: tuple[int, int], rule: str, frequencies: Tensor) -> Any:
    """`dense_band` as an attention function of transformers."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = dense_band(query, key, value, cache, scale, rule=rule, frequencies=frequencies)
        return output.transpose(1, 2).contiguous(), None

    return attend
