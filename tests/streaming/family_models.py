"""Tiny random models of the families that stream, and the independent ways to decode them: for tests and the table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sinktrain.streaming import CacheSpec

VOCABULARY = 97
WINDOW = 12
"""Of layers with a sliding window: below some of the tested caches' y, above that of others."""

_SHARED = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
_LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 64,
}  # fmt: skip


def _scaled(kind: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": "llama", "rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **fields}}


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "llama"},
    "Mistral": {"model_type": "mistral", "sliding_window": None},
    "Mixtral": {"model_type": "mixtral", "sliding_window": None, **_EXPERTS},
    "Qwen2": {"model_type": "qwen2"},
    "Qwen3 (query and key norms)": {"model_type": "qwen3", "head_dim": 16},
    "Phi (half of a head rotated)": {"model_type": "phi", "partial_rotary_factor": 0.5},
    "Phi-3": {"model_type": "phi3"},
    "GPT-NeoX, Pythia (a quarter rotated)": {"model_type": "gpt_neox", "rotary_pct": 0.25, "hidden_size": 64},
    "Falcon": {"model_type": "falcon", "num_kv_heads": 2, "new_decoder_architecture": True},
    "StableLM (a quarter rotated)": {"model_type": "stablelm", "partial_rotary_factor": 0.25, "hidden_size": 64},
    "OLMo 2": {"model_type": "olmo2"},
    "SmolLM3 (some layers without positions)": {"model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1]},
    "Gemma": {"model_type": "gemma", "head_dim": 8},
    "Granite": {"model_type": "granite"},
    "StarCoder2": {"model_type": "starcoder2"},
    "Cohere (interleaved rotation)": {"model_type": "cohere"},
    "GLM (interleaved, half rotated)": {"model_type": "glm", "head_dim": 16},
    "RoPE scaling `linear`": _scaled("linear", factor=4.0),
    "RoPE scaling `dynamic`": {**_scaled("dynamic", factor=4.0), "max_position_embeddings": 40},
    "RoPE scaling `llama3`": _scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "RoPE scaling `yarn`": _scaled("yarn", factor=4.0, original_max_position_embeddings=128),
    "RoPE scaling `longrope`": {
        "model_type": "phi3", "rope_parameters": _LONG, "original_max_position_embeddings": 64
    },
    "ALiBi: Bloom": {"model_type": "bloom", "n_head": 4, "n_layer": 4},
    "ALiBi: MPT": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512},
    "ALiBi: Falcon": {"model_type": "falcon", "alibi": True, "multi_query": True, "new_decoder_architecture": False},
    "Gemma 2 (sliding layers, soft cap)": {"model_type": "gemma2", **_GEMMA},
    "Gemma 3 (sliding layers, two rotations)": {
        "model_type": "gemma3_text", **_GEMMA,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "OLMo 3 (sliding layers)": {"model_type": "olmo3", "sliding_window": WINDOW},
    "Mistral (a window in every layer)": {"model_type": "mistral", "sliding_window": WINDOW},
    "gpt-oss (sink logits, sliding layers)": {
        "model_type": "gpt_oss", "head_dim": 8, "sliding_window": WINDOW, **_EXPERTS,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                            "original_max_position_embeddings": 128},
    },
    "Granite SWA (sink logits, sliding layers)": {"model_type": "granite_swa", "sliding_window": WINDOW},
}  # fmt: skip

NO_4D_MASK = ("ALiBi: Bloom", "ALiBi: Falcon")
"""They make their biases from a mask of two dimensions, so that no mask of ours can be given to them."""

SCALED_WITH_LENGTH = ("RoPE scaling `dynamic`", "RoPE scaling `longrope`")

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "GPT-2": ({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}, "positions are learned"),
    "OPT": ({"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 32}, "positions are learned"),
    "Mamba": ({"model_type": "mamba", "state_size": 4}, "recurrent state"),
    "Jamba": ({"model_type": "jamba"}, "recurrent state"),
    "Llama 4": ({"model_type": "llama4_text"}, "chunked_attention"),
    "DeepSeek-V3": (
        {"model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4, "n_group": 1,
         "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1},
        "depends on the position",
    ),
    "GPT-J": ({"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "one rotation"),
}  # fmt: skip

_SHARP = ("q_proj", "k_proj", "qkv", "query_key_value", "Wqkv")


def make(fields: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model whose attention is far from uniform, so that a wrong mask or distance shows."""
    settings = {**_SHARED, **fields}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.copy_(torch.linspace(-2, 4, weight.numel()))  # sink logits that take much and little
            elif weight.dim() > 1:
                weight.mul_(8 if any(part in name for part in _SHARP) else 3)
    return model.eval()


def some_tokens(length: int = 90, seed: int = 1) -> Tensor:
    """(length,) random token ids, without those that mean padding or an end."""
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def masked_nll(model: PreTrainedModel, tokens: Tensor, spec: CacheSpec) -> Tensor:
    """The NLL (T-1,) under the `original` rule by one stock forward over the whole text with a T x T mask.

    Nothing of sinktrain is in it: transformers' own attention, positions in the text, and the eviction rule as a mask.
    """
    length = len(tokens) - 1
    i, j = torch.arange(length)[:, None], torch.arange(length)
    seen = j <= i if spec.recent is None else (j <= i) & ((j < spec.sinks) | (i - j <= spec.recent))
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    masks = {kind: _additive(seen, model.dtype) for kind in kinds}
    if window is not None:
        narrow = _additive(seen & (i - j < window), model.dtype)
        masks = {kind: narrow if kind == "sliding_attention" or len(kinds) == 1 else masks[kind] for kind in kinds}
    model.set_attn_implementation("eager")
    mask: Any = masks if len(kinds) > 1 else next(iter(masks.values()))
    logits = model(input_ids=tokens[None, :-1], attention_mask=mask, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]
