"""Bloom, MPT and Falcon: families of transformers that attend in code of their own, not through its interface.

While a stream runs, each of their attention modules is given a forward that makes queries, keys and values with the
module's own weights and hands them to the attention function of the stream. The classes are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Attend = Callable[..., tuple[Tensor, None]]


def _bloom(module: Any, attend: Attend, hidden: Tensor, residual: Tensor, *args: Any, **kwargs: Any) -> Any:
    query, key, value = module._reshape(module.query_key_value(hidden))
    output, _ = attend(module, query, key, value, None, scaling=module.inv_norm_factor)
    return residual + module.dense(output.flatten(2)), None


def _mpt(module: Any, attend: Attend, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    mixed = module.Wqkv(hidden)
    if module.clip_qkv:
        mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    batch, length, _ = hidden.shape
    query, key, value = (
        x.view(batch, length, module.n_heads, module.head_dim).transpose(1, 2) for x in mixed.chunk(3, dim=2)
    )
    output, _ = attend(module, query, key, value, None, scaling=module.softmax_scale)
    return module.out_proj(output.flatten(2)), None


def _falcon(module: Any, attend: Attend, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    query, key, value = (x.transpose(1, 2) for x in module._split_heads(module.query_key_value(hidden)))
    if module.new_decoder_architecture:  # it repeats each key head for the queries that share it
        groups = module.num_heads // module.num_kv_heads
        key, value = key[:, ::groups], value[:, ::groups]
    output, _ = attend(module, query, key, value, None, scaling=module.inv_norm_factor)
    return module.dense(output.flatten(2)), None


_FORWARDS: dict[str, Callable[..., Any]] = {"BloomAttention": _bloom, "MptAttention": _mpt, "FalconAttention": _falcon}


def unused_mask(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """The smallest mask that such a model takes; without one it makes a mask or biases as long as the stream."""
    shape = (batch, 1, 1, 1) if model.config.model_type == "mpt" else (batch, length)
    return torch.ones(shape, dtype=torch.long, device=model.device)


def own_attention_modules(model: PreTrainedModel) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """The attention modules of `model` that do not use transformers' interface, each with its forward for a stream."""
    return [(m, _FORWARDS[type(m).__name__]) for m in model.modules() if type(m).__name__ in _FORWARDS]


def give_forward(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Gives `module` a forward of its own; None for that of its class."""
    if forward is None:
        vars(module).pop("forward", None)
    else:
        module.forward = forward


def alibi_slopes(model: PreTrainedModel) -> Tensor | None:
    """ALiBi's slopes (H,), float64, as the model's own code makes them; None for a model without ALiBi."""
    config = model.config
    ones = torch.ones(1, 2, dtype=torch.long)
    if config.model_type == "bloom":
        from transformers.models.bloom.modeling_bloom import build_alibi_tensor

        biases = build_alibi_tensor(ones, config.n_head, torch.float32)
    elif config.model_type == "mpt":
        from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

        biases = build_mpt_alibi_tensor(config.n_heads, 2, config.attn_config.alibi_bias_max)
    elif config.model_type == "falcon" and config.alibi:
        from transformers.models.falcon.modeling_falcon import build_alibi_tensor as build_falcon_alibi

        # Falcon scales the sum of scores and biases.
        head = config.hidden_size // config.num_attention_heads
        biases = build_falcon_alibi(ones, config.num_attention_heads, torch.float32) * head**-0.5
    else:
        return None
    flat = biases.reshape(-1, 2).double()
    return (flat[:, 1] - flat[:, 0]).to(model.device)
