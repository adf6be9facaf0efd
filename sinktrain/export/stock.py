"""Models whose softmax has an outlet, as an architecture that transformers and other engines already know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sinktrain.base.errors import UserError
from sinktrain.training.checkpoints import Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STOCK = "granite_swa"
"""A Llama with a sink logit in each head; in transformers from 5.18."""

_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "attention_bias",
    "mlp_bias",
)  # fmt: skip


def as_stock(trained: Trained) -> PreTrainedModel:
    """The model in an architecture of transformers that has its outlet.

    `none` and `token` are plain models as they are. A Llama of kind `logit` is a `granite_swa` with all multipliers 1
    and full attention; `zero` is the same with logits of 0.

    Raises:
        UserError: no architecture has this outlet.
    """
    kind, model = trained.sink.kind, trained.model
    if not trained.sink.has_outlet or (kind == "logit" and model.config.model_type in (STOCK, "gpt_oss")):
        return model
    if kind == "kv" or model.config.model_type != "llama":
        raise UserError(
            f"--checkpoint: a {model.config.model_type} of sink.kind {kind} is no architecture of transformers; "
            "a llama of kind zero or logit is, and every model of kind token."
        )
    return _granite(trained)


def _granite(trained: Trained) -> PreTrainedModel:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    if STOCK not in CONFIG_MAPPING:
        raise UserError(f"--checkpoint: sink.kind {trained.sink.kind} needs transformers>=5.18 to export; upgrade it.")
    model = trained.model
    old: Any = model.config
    config = AutoConfig.for_model(
        STOCK,
        **{name: getattr(old, name) for name in _SAME if getattr(old, name, None) is not None},
        attention_multiplier=old.head_dim**-0.5,
        layer_types=["full_attention"] * old.num_hidden_layers,
    )
    weights = model.state_dict()
    for number in range(old.num_hidden_layers):
        logits = torch.zeros(old.num_attention_heads, dtype=model.dtype)
        weights.setdefault(f"model.layers.{number}.self_attn.sinks", logits)
    stock: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    stock.load_state_dict(weights)
    stock.generation_config = model.generation_config
    _check(model, stock.eval())
    return stock


@torch.no_grad()
def _check(model: PreTrainedModel, stock: PreTrainedModel) -> None:
    ids = torch.linspace(0, model.config.vocab_size - 1, 64).long()[None]
    expected, found = (each(input_ids=ids, use_cache=False).logits.float() for each in (model, stock))
    bound = 1e-4 if model.dtype == torch.float32 else 5e-2
    if not bool((found - expected).abs().max() <= bound * expected.abs().max()):
        raise UserError(
            f"--checkpoint: {STOCK} gives other logits than this llama, whose config it does not know in full; "
            "train kind token to export it."
        )
