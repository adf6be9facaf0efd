"""The observed attention is that of transformers' own eager attention, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.evaluation.watchers import Along, Entropy, Norms, Pooled
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.streaming.observe import attention_columns, observe
from sinktrain.streaming.watchers import Columns

IDS = torch.randint(1, 97, (3, 20), generator=torch.Generator().manual_seed(3))
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6},
    "granite_swa": {"layer_types": ["full_attention"] * 3},
}
DTYPES = {"gpt_oss": torch.float32}  # its experts know no other


def other(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **SMALL, **OTHERS[kind]),
        dtype=DTYPES.get(kind, torch.float64),
        attn_implementation="eager",
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "sinks")):
                weight.copy_(torch.randn_like(weight))
    return model.eval()


def eager(model: PreTrainedModel, positions: list[int]) -> tuple[Tensor, Tensor]:
    """alpha (B, layers, H, P) and what is missing to 1 (B, layers, H), from whole attention matrices."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=IDS, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation(before)
    weights = torch.stack(found, dim=1)
    alpha = torch.stack([weights[..., p:, p].mean(dim=-1) for p in positions], dim=-1)
    return alpha, 1 - weights.sum(dim=-1).mean(dim=-1)


def test_alpha_is_that_of_eager_attention(family: str) -> None:
    model = tiny_model(family, torch.float64)
    with torch.no_grad():
        alpha, outlet = attention_columns(model, IDS, [0, 1, 4], check=True)
    expected, _ = eager(model, [0, 1, 4])
    assert outlet is None and alpha.shape == (3, 3, 4, 3) and float(alpha.std()) > 0.03
    assert torch.allclose(alpha, expected, atol=1e-12)


def test_queries_can_be_left_out_in_whatever_block_they_come() -> None:
    model, columns = tiny_model("llama", torch.float64), Columns([0, 4], after=3)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        observe(model, IDS, columns, rows=5)
        weights = torch.stack(model(input_ids=IDS, use_cache=False, output_attentions=True).attentions, dim=1)
    for n, position in enumerate((0, 4)):
        assert torch.allclose(columns.alpha[..., n], weights[..., position + 3 :, position].mean(dim=-1), atol=1e-12)


def test_granite_swa_whose_own_weights_leave_the_sink_out() -> None:
    """So its output is compared (`check`), and each head's weights with those times what the outlet leaves."""
    model = other("granite_swa")
    with torch.no_grad():
        alpha, outlet = attention_columns(model, IDS, [0], check=True)
    plain, _ = eager(model, [0])
    assert outlet is not None and 0.05 < float(outlet.mean()) < 0.95
    assert bool((alpha <= plain + 1e-6).all()) and float((plain - alpha).max()) > 0.01


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_windows_softcaps_and_sink_logits(kind: str) -> None:
    model = other(kind)
    with torch.no_grad():
        alpha, outlet = attention_columns(model, IDS, [0, 2], check=True)
    expected, missing = eager(model, [0, 2])
    bound = 1e-5 if kind in DTYPES else 1e-7  # their own attention is float32 in places
    assert float(alpha.std()) > 0.02 and torch.allclose(alpha.double(), expected.double(), atol=bound)
    assert (outlet is None) == (kind == "gemma2")
    if outlet is not None:
        assert float(outlet.mean()) > 0.01 and torch.allclose(outlet.double(), missing.double(), atol=bound)


@pytest.mark.parametrize("kind", ["zero", "key", "key and value"])
def test_outlets_are_an_extra_column(kind: str) -> None:
    """Against a Llama whose eager attention is written out with one more key and value."""
    from transformers.models.llama import modeling_llama

    model = tiny_model("llama", torch.float64)
    for layer in model.model.layers:
        layer.self_attn.sink_kind = "zero" if kind == "zero" else "kv"
        if kind != "zero":
            layer.self_attn.sink_key = nn.Parameter(4 * torch.randn(2, 8, dtype=torch.float64))
        if kind == "key and value":
            layer.self_attn.sink_value = nn.Parameter(torch.randn(2, 8, dtype=torch.float64))
    kept: list[Tensor] = []

    def written_out(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        own_key = getattr(module, "sink_key", torch.zeros(2, 8, dtype=torch.float64))
        own_value = getattr(module, "sink_value", torch.zeros(2, 8, dtype=torch.float64))
        k = torch.cat((own_key[None, :, None].expand(len(q), -1, -1, -1), k), dim=2)
        v = torch.cat((own_value[None, :, None].expand(len(q), -1, -1, -1), v), dim=2)
        k, v = modeling_llama.repeat_kv(k, 2), modeling_llama.repeat_kv(v, 2)
        hidden = torch.ones(20, 21, dtype=torch.bool).triu(2)
        weights = (q @ k.mT / 8**0.5).masked_fill(hidden, float("-inf")).softmax(dim=-1)
        kept.append(weights)
        return (weights @ v).transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("written_out", written_out)
    model.config._attn_implementation = "written_out"
    with torch.no_grad():
        alpha, outlet = attention_columns(model, IDS, [0, 3], check=True)
    weights = torch.stack(kept, dim=1)
    assert model.config._attn_implementation == "written_out" and outlet is not None
    assert torch.allclose(outlet, weights[..., 0].mean(dim=-1), atol=1e-12)
    assert torch.allclose(alpha[..., 1], weights[..., 3:, 4].mean(dim=-1), atol=1e-12)


def test_a_model_that_attends_otherwise_is_refused() -> None:
    bloom = AutoConfig.for_model("bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    with torch.no_grad(), pytest.raises(UserError, match=r"SinkMonitor.*bloom"):
        attention_columns(AutoModelForCausalLM.from_config(bloom).eval(), IDS, [0], check=True)


def test_a_model_that_does_more_than_the_interface_says_is_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        attention_columns(model, IDS, [0], check=True)
        for layer in model.model.layers:
            layer.self_attn.sink_kind = "zero"  # which its attention does not look at
        with pytest.raises(UserError, match="SinkMonitor"):
            attention_columns(model, IDS, [0], check=True)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return found


def test_no_tensor_is_as_large_as_the_scores_of_a_head() -> None:
    """Not of one head, and not in a diagnosis of everything at once; transformers' eager attention makes them."""
    model, length = tiny_model("llama"), 600
    ids = torch.randint(1, 97, (1, length), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), Largest() as seen:
        observe(model, ids, Columns([0, 1]), Along(), Pooled(length, 32), Entropy(), Norms(), rows=64)
    assert 0 < seen.elements <= 4 * 64 * length < length**2
    model.set_attn_implementation("eager")
    with torch.no_grad(), Largest() as seen:
        model.base_model(input_ids=ids, use_cache=False)
    assert seen.elements >= 4 * length**2


def with_outlet_of(kind: str) -> PreTrainedModel:
    model = tiny_model("llama", torch.float64)
    add_outlet(model, SinkConfig(kind=kind, init="normal"))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sink" in name:
                weight.copy_(torch.randn_like(weight))
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen3", *OTHERS, "zero", "logit", "kv"])
@pytest.mark.parametrize("rows", [1, 7])
def test_blocks_of_queries_change_nothing(kind: str, rows: int) -> None:
    if kind in OTHERS:
        model = other(kind)
    else:
        model = with_outlet_of(kind) if kind in ("zero", "logit", "kv") else tiny_model(kind)
    found = []
    for each in (IDS.shape[1], rows):
        columns, along, pooled, entropy = Columns([0, 1, 4]), Along(), Pooled(20, 6), Entropy()
        with torch.no_grad():
            observe(model, IDS, columns, along, pooled, entropy, rows=each, check=True)
        figures = [columns.alpha, along.share, pooled.map, entropy.mean, entropy.even]
        found.append(figures + [x for x in (columns.outlet, pooled.outlet) if x is not None])
    has_outlet = kind in ("gpt_oss", "granite_swa", "zero", "logit", "kv")
    assert len(found[0]) == (7 if has_outlet else 5)
    for whole, blocked in zip(*found, strict=True):
        assert float(whole.std()) > 1e-4 or whole.numel() == 3  # the latter is `even`, by layer
        assert torch.allclose(whole, blocked, atol=5e-6 if kind in DTYPES else 1e-6, rtol=0)  # float32 there
