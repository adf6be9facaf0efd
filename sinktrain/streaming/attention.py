"""The attention of a stream, exactly equal to token-by-token decoding with a rolling cache.

Under the eviction rule (`CacheSpec`) the key and value of a token in every layer depend only on what that token saw
itself. So one banded pass over the text, in chunks of any size, gives what decoding one token at a time gives.

The model is run at position 0 throughout, so that queries and keys come here unrotated, and are rotated here with
angles taken in float64. A query at position i has two parts to look at:

- the band: the keys j with i - j <= y, at their own distance i - j;
- the sinks that have left the band (j < x, i - j > y), at distance min(i, C) - j under the `cache` rule and i - j
  under the `original` rule.

One token: the sinks' rows of the ring are rewritten for it, and one attention over the ring does both. A chunk: the
queries are turned to min(i, C) for the sinks, and the two parts merge by their log-sum-exp. A layer with a sliding
window of W tokens sees what is at a distance below W, as the position rule counts distances.

An outlet of the softmax (a sink of kind `zero`, `logit` or `kv`) takes no place in the cache and is never evicted. The
key of `kv` is one at position 0, so that its distance is that of a first token: min(i, C), or i.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import has_outlet, outlet_logits, outlet_value, with_outlet
from sinktrain.streaming.cache import SinkCache
from sinktrain.streaming.chunk import chunk_attention
from sinktrain.streaming.decode import decode_attention
from sinktrain.streaming.kernels import Scores
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.rotary import Rotary
from sinktrain.streaming.step import Step

NAME = f"sinktrain_stream_{id(SinkCache)}"
"""The function's name in transformers' `AttentionInterface`: another one for each copy of this code."""

STREAM = f"_sinktrain_stream_{id(SinkCache)}"
"""The attribute of the model's config in which the cache stands while a forward runs."""


def stream_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    stream: SinkCache | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (B, H, L, D), key and value (B, H_kv, L, D), all unrotated.

    Args:
        module: the attention module, which knows its layer.
        query: of the new tokens.
        key: of the new tokens.
        value: of the new tokens.
        attention_mask: not used: the stream knows what is visible.
        stream: the cache, whose step has begun; by default the one that stands in the module's config.
        scaling: multiplies the scores, by default D^-1/2.
        sliding_window: W, if the layer has a window of its own.
        softcap: bounds the scores (Gemma 2).
        s_aux: (H,) the layer's sink logits (gpt-oss), where its module has no outlet of ours.
        **kwargs: whatever else transformers passes.

    Returns:
        The output (B, L, H, D), and None for the weights.

    Raises:
        UserError: a layer attends twice, or a model in training would need gradients through the cache.
    """
    index = int(module.layer_idx)  # type: ignore[arg-type]
    if stream is None:
        stream = getattr(module.config, STREAM)
    layer, step = stream.layers[index], stream.step
    assert isinstance(layer, SinkLayer) and step is not None
    if index in step.attended:
        raise UserError(f"{type(module).__name__}: attends twice in a layer, which has no streaming form here.")
    step.attended.add(index)
    if key.requires_grad:
        if module.training:
            raise UserError("past_key_values: a SinkCache is for inference; call model.eval(), or train without it.")
        key, value = key.detach(), value.detach()
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, stream.positions.slopes)
    rotary = stream.positions.rotary[index]
    needed = 0 if layer.recent is not None else int(step.seen.max()) + query.shape[2]
    layer.prepare(key, value, sliding_window, needed)
    with_logit = s_aux is not None or has_outlet(module)
    if query.shape[2] == 1:
        output, lse = decode_attention(layer, step, rotary, query, key, value, scores, need_lse=with_logit)
    else:
        output, lse = chunk_attention(stream, layer, step, rotary, query, key, value, scores)
    if with_logit:
        assert lse is not None
        logits = _outlet_logits(module, step, rotary, query, scores.scaling) if s_aux is None else s_aux[:, None]
        output = with_outlet(output, lse, logits, outlet_value(module, query.shape[1]))
    return output.transpose(1, 2).contiguous(), None


def _outlet_logits(module: torch.nn.Module, step: Step, rotary: Rotary | None, query: Tensor, scaling: float) -> Tensor:
    """The outlet's logit for unrotated queries (B, H, L, D), turned to where they stand in the cache."""
    if rotary is not None:
        query = rotary.rotate(query, step.from_start(rotary, query.dtype))
    logits = outlet_logits(module, query, scaling)
    assert logits is not None
    return logits


AttentionInterface.register(NAME, stream_attention)
