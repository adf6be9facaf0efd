"""Giving every softmax of a model an outlet: sinks of kind `zero`, `logit` and `kv`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from sinktrain.base.errors import UserError
from sinktrain.sinks.attention import sink_attention
from sinktrain.sinks.config import SinkConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sinktrain"
"""The attention with an outlet, in transformers' `AttentionInterface`."""

_PROBE = "sinktrain_probe"

AttentionInterface.register(NAME, sink_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def add_outlet(model: PreTrainedModel, config: SinkConfig) -> None:
    """Gives the attention modules of `model` their outlet, in place; for `none` and `token` there is nothing to do.

    Everything else stays as it is, to the bit, and no random number of the global generator is drawn: models of several
    kinds from one seed differ in nothing else. Logits begin at 0, values and keys small.

    Args:
        model: a causal language model whose attention goes through transformers' interface.
        config: which outlet.

    Raises:
        UserError: the attention of this architecture cannot be given one.
    """
    if not config.has_outlet:
        return
    text = model.config.get_text_config()
    found = _attention_modules(model, config.kind)
    spread = float(getattr(text, "initializer_range", 0.02))
    for number, (module, heads, key_heads, width) in enumerate(found):
        if isinstance(getattr(module, "sinks", None), Tensor) and config.kind != "logit":
            raise UserError(
                f"sink.kind {config.kind}: {model.config.model_type} has sink logits of its own; use sink.kind logit."
            )
        module.sink_kind = config.kind
        if config.kind == "logit" and not hasattr(module, "sinks"):
            module.sinks = nn.Parameter(_like(module, torch.zeros(heads)))
        if config.kind == "kv":
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
            first = torch.randn(2, key_heads, width, generator=generator) * spread
            module.sink_key = nn.Parameter(_like(module, first[0]))
            if config.value == "learned":
                module.sink_value = nn.Parameter(_like(module, first[1]))
    model.config._attn_implementation = NAME


def _like(module: nn.Module, x: Tensor) -> Tensor:
    """`x` on the device and in the dtype of the module's weights."""
    weight = next(module.parameters())
    return x.to(device=weight.device, dtype=weight.dtype)


def _attention_modules(model: PreTrainedModel, kind: str) -> list[tuple[Any, int, int, int]]:
    """The modules that attend through the interface, with H, H_kv and D; found by running two tokens."""
    found: list[tuple[Any, int, int, int]] = []
    dropout: list[float] = []

    def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append((module, query.shape[1], key.shape[1], query.shape[-1]))
        dropout.append(kwargs.get("dropout") or 0.0)
        if kwargs.get("position_bias") is not None or value.shape[-1] != query.shape[-1]:
            found.clear()
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_PROBE, probe)
    before, training = model.config._attn_implementation, model.training
    model.config._attn_implementation = _PROBE
    model.train()  # so that dropout shows, whatever the config calls it
    try:
        with torch.no_grad(), torch.random.fork_rng([] if model.device.type == "cpu" else [model.device]):
            model(input_ids=torch.arange(2, device=model.device)[None], use_cache=False)
    except (TypeError, RuntimeError, AttributeError):  # it does something of its own with masks or values
        found.clear()
    finally:
        model.config._attn_implementation = before
        model.train(training)
    layers = int(model.config.get_text_config().num_hidden_layers)
    if len({id(module) for module, *_ in found}) != layers or len(found) != layers:
        raise UserError(
            f"sink.kind {kind}: {model.config.model_type} does not attend once a layer through the attention interface "
            "of transformers; use sink.kind token, which every model takes."
        )
    if any(dropout):
        raise UserError(
            f"sink.kind {kind}: model.config has attention dropout {max(dropout)}, which no outlet knows; set it to 0."
        )
    return found
