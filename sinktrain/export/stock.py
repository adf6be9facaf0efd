"""Models whose softmax has an outlet, as an architecture that transformers and other engines already know."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from sinktrain.base.errors import UserError
from sinktrain.base.models import quiet
from sinktrain.training.checkpoints import Trained
from sinktrain.training.weights import Weights

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


def as_stock(trained: Trained, weights: Weights) -> tuple[PreTrainedModel, Weights]:
    """The model in an architecture of transformers that has its outlet, not filled in either, and its weights.

    `none` and `token` are plain models as they are. A Llama of kind `logit` is a `granite_swa` with all multipliers 1
    and full attention; `zero` is the same with logits of 0.

    Raises:
        UserError: no architecture has this outlet.
    """
    kind, model = trained.sink.kind, trained.model
    if not trained.sink.has_outlet or (kind == "logit" and model.config.model_type in (STOCK, "gpt_oss")):
        return model, weights
    if kind == "kv" or model.config.model_type != "llama":
        raise UserError(
            f"--checkpoint: a {model.config.model_type} of sink.kind {kind} is no architecture of transformers; "
            "a llama of kind zero or logit is, and every model of kind token."
        )
    _check(model.config)
    stock = _granite(model.config, model.dtype)
    stock.generation_config = model.generation_config
    logits = torch.zeros(model.config.num_attention_heads, dtype=model.dtype)
    return stock, weights.filled_up({name: logits for name in stock.state_dict() if name.endswith(".sinks")})


def _granite(llama: Any, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if STOCK not in CONFIG_MAPPING:
        raise UserError("--checkpoint: sink.kind zero or logit needs transformers>=5.18 to export; upgrade it.")
    config = AutoConfig.for_model(
        STOCK,
        **{name: getattr(llama, name) for name in _SAME if getattr(llama, name, None) is not None},
        attention_multiplier=llama.head_dim**-0.5,
        layer_types=["full_attention"] * llama.num_hidden_layers,
    )
    with no_init_weights():
        stock: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    stock.tie_weights()
    stock.eval()
    return stock


@torch.no_grad()
def _check(config: Any) -> None:
    """A small random Llama of this config, whose fields may say more than a Granite knows, gives the same logits."""
    from transformers import AutoModelForCausalLM

    fields = copy.deepcopy(config)
    groups = config.num_attention_heads // config.num_key_value_heads
    for name, value in (
        ("num_hidden_layers", 2), ("vocab_size", 64), ("num_key_value_heads", 1), ("num_attention_heads", groups),
        ("hidden_size", 16 * groups), ("head_dim", config.head_dim), ("intermediate_size", 32),
        ("pad_token_id", None), ("bos_token_id", None), ("eos_token_id", None),
    ):  # fmt: skip
        setattr(fields, name, value)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llama = AutoModelForCausalLM.from_config(fields, dtype=torch.float32, attn_implementation="eager").eval()
        for parameter in llama.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    stock = _granite(fields, torch.float32)
    sinks = {name: torch.full_like(t, -1e4) for name, t in stock.state_dict().items() if name.endswith(".sinks")}
    stock.load_state_dict({**llama.state_dict(), **sinks})
    ids = torch.arange(64)[None]
    expected, found = (each(input_ids=ids, use_cache=False).logits for each in (llama, stock))
    if not bool((found - expected).abs().max() <= 1e-4 * expected.abs().max()):
        raise UserError(
            f"--checkpoint: {STOCK} gives other logits than this llama, whose config it does not know in full; "
            "train kind token to export it."
        )
