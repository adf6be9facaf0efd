"""Adapters that are added while weights are read give the matrices that PEFT's own merging gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sinktrain.base.errors import UserError
from sinktrain.training.adapters import add_adapters
from sinktrain.training.tuning import TuningConfig
from sinktrain.training.weights import Weights

SMALL = {
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=60
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64),  # whose matrices are (in, out)
}


@pytest.mark.parametrize("kind", SMALL)
def test_adapters_are_added_as_peft_adds_them(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SMALL[kind])
    flipped = frozenset(f"{n}.weight" for n, module in model.named_modules() if type(module).__name__ == "Conv1D")
    plain = [name for name, _ in model.named_parameters()]
    tuning = TuningConfig(mode="lora", rank=4, alpha=12.0)
    add_adapters(model, tuning.to_dict())
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read = lambda name, dtype: stored[name].to(dtype, copy=True)  # noqa: E731
    merged, bare = (Weights(stored, read, torch.float32, s, "--checkpoint x", flipped) for s in (3.0, None))
    changed = 0
    for _, layer in [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]:
        layer.merge(safe_merge=True)
    for name, tensor in model.state_dict().items():
        own = name.replace(".base_layer.", ".")
        if ".lora_" not in name:
            torch.testing.assert_close(merged[own], tensor, rtol=1e-6, atol=1e-6)
            assert torch.equal(bare[own], stored[name])
            changed += not torch.equal(merged[own], bare[own])
    assert changed >= 8 and set(plain) <= set(merged) and not any(".lora_" in name for name in merged)
    with pytest.raises(UserError, match="absent is missing"):
        merged["absent"]
