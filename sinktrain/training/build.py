"""The model of a `SinkModule`: loaded or new, with its sink, with what is trained of it, and with its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sinktrain.base.models import load_model, model_from_config
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.streaming.train import Banded
from sinktrain.training.first_token import most_attended
from sinktrain.training.heads import has_plain_head
from sinktrain.training.masks import unmasked_attention
from sinktrain.training.teacher import Teacher
from sinktrain.training.tuning import free, only_adds

if TYPE_CHECKING:
    from sinktrain.training.module import SinkModule


def build(module: SinkModule) -> None:
    """Makes the model as the module's options say, and tells the module what is to be known of it.

    Raises:
        UserError: the model cannot be had, cannot be given the sink, or cannot be trained so.
    """
    if module.name is not None:
        model = _pretrained(module)
    else:
        size = len(module.tokenizer) - len(module.sink_ids)  # the sink's row is added below, the same way for all
        model = model_from_config(module.new_config or {}, size, module.seed)
    if not module.had_sinks:
        copied = module.bos_id
        if module.sink.init == "attended":
            copied = most_attended(model, min(module.sink_ids), module.sink.seed)
        is_new = module.name is None
        grow_embedding(model, len(module.tokenizer), module.sink_ids, module.sink, copied, is_new)
    add_outlet(model, module.sink)
    module.plain_head = has_plain_head(model)
    module.rows = free(model, module.tuning, module.sink_ids, module.seed)
    if module.band is None:
        module.unmasked = unmasked_attention(model)
    else:
        module.banded = Banded(model, module.band, module.band_rule)
    if module.tuning.distill:
        module.teacher = _as_it_was(module, model)
    if module.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    if module.compiled:
        # In place, so that the names of the weights stay. The shapes of batches never change.
        model.base_model.compile(dynamic=False)
    module.model = model


def _pretrained(module: SinkModule) -> Any:
    return load_model(str(module.name), getattr(torch, module.dtype_of_weights), **module.hub)


def _as_it_was(module: SinkModule, model: Any) -> Teacher:
    """The same weights once more, where the model as it was is in them still; else a copy."""
    shared = only_adds(model) and not (module.had_sinks or module.sink.has_outlet)
    before = model if shared else _pretrained(module)
    if not shared and (unmasked := unmasked_attention(before)) is not None:
        before.config._attn_implementation = unmasked  # it gets whole texts, or the mask of packed documents
    return Teacher(before, shared, module.front, module.sink_ids, module.known, module.tuning.distill)
