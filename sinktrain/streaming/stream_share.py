"""The attention on position 0 in a stream, as a function of where the query stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import outlet_value
from sinktrain.streaming.own_attention import own_attention_modules
from sinktrain.streaming.spec import CacheSpec, PositionRule
from sinktrain.streaming.train import Banded, band_attention

_NAME = "sinktrain_stream_share"


@torch.no_grad()
def stream_share(model: PreTrainedModel, ids: Tensor, spec: CacheSpec, *, rule: PositionRule = "cache") -> Tensor:
    """The attention of every query on position 0 while a text streams through a cache.

    The model attends with the band of the cache (`sinktrain.streaming.train`), which is what it does in a stream. Each
    layer attends twice: a second time to values that are 1 at position 0 and 0 elsewhere, so that the output is the
    attention asked for. No weights are kept, whatever kernel does it.

    Args:
        model: in evaluation mode, with its own attention.
        ids: (B, T) token ids without padding.
        spec: the cache, not `dense`.
        rule: which distance the sinks are seen at.

    Returns:
        (B, layers, H, T), in at least float32, on the model's device; 0 for a query whose cache has no position 0.

    Raises:
        UserError: the model has no streaming form, or does not attend through the interface of transformers.
    """
    if own_attention_modules(model):
        raise UserError(
            f"model.name: {type(model).__name__} does not attend through the interface of transformers, so that its "
            "attention in a stream cannot be seen; name another model."
        )
    found: list[Tensor] = []

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        wide = [x if x.dtype == torch.float64 else x.float() for x in (query, key, value)]
        marked, nothing = torch.zeros_like(wide[2]), torch.zeros_like(wide[2])
        marked[:, :, 0] = 1
        share = band_attention(module, wide[0], wide[1], marked, *args, **kwargs)[0][..., 0]
        if outlet_value(module, query.shape[1]) is not None:  # the output has that value's share too
            share = share - band_attention(module, wide[0], wide[1], nothing, *args, **kwargs)[0][..., 0]
        found.append(share.transpose(1, 2))
        return band_attention(module, query, key, value, *args, **kwargs)

    banded = Banded(model, spec, rule)
    AttentionInterface.register(_NAME, attend)
    inputs = banded.inputs(ids)
    try:
        model.config._attn_implementation = _NAME
        model.base_model(**inputs)
    finally:
        banded.end()
    return torch.stack(found, dim=1)
