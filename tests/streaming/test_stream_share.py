"""The attention on position 0 in a stream is that of T x T scores with the eviction rule written out, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from dense_band import dense_band
from family_models import FAMILIES, make
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.streaming import CacheSpec, PositionRule
from sinktrain.streaming.observe import observe
from sinktrain.streaming.stream_share import stream_share
from sinktrain.streaming.watchers import Columns

IDS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(3))


def written_out(model: PreTrainedModel, cache: tuple[int, int], rule: str, kind: str | None = None) -> Tensor:
    """(B, layers, H, T) from `dense_band`, to values that are 1 at position 0."""
    frequencies = model.model.rotary_emb.inv_freq
    kept: list[Tensor] = []

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        outlet = None if kind is None else (kind, dict(module.named_parameters(recurse=False)))
        marked = torch.zeros_like(v)
        marked[:, :, 0] = 1
        same: dict[str, Any] = {"rule": rule, "frequencies": frequencies}
        valueless = ("k", outlet[1]) if outlet is not None and kind == "kv" else outlet
        kept.append(dense_band(q, k, marked, cache, kwargs["scaling"], outlet=valueless, **same)[..., 0])
        return dense_band(q, k, v, cache, kwargs["scaling"], outlet=outlet, **same).transpose(1, 2), None

    AttentionInterface.register("written_out_share", attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = "written_out_share"
    with torch.no_grad():
        model.base_model(input_ids=IDS, use_cache=False)
    model.config._attn_implementation = before
    return torch.stack(kept, dim=1)


@pytest.mark.parametrize("kind", [None, "zero", "logit", "kv"])
@pytest.mark.parametrize(("cache", "rule"), [((1, 8), "cache"), ((3, 6), "original"), ((0, 9), "cache")])
def test_it_is_that_of_the_written_out_band(kind: str | None, cache: tuple[int, int], rule: PositionRule) -> None:
    model = tiny_model("llama", torch.float64)
    if kind is not None:
        add_outlet(model, SinkConfig(kind=kind))  # type: ignore[arg-type]
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "sink" in name:
                    weight.copy_(torch.randn_like(weight))
    own = model.config._attn_implementation
    found = stream_share(model, IDS, CacheSpec(*cache), rule=rule)
    expected = written_out(model, cache, rule, kind)
    assert model.config._attn_implementation == own
    assert found.shape == (2, 3, 4, 40) and float(found[..., 0].min()) > 1e-4
    assert torch.allclose(found, expected, atol=1e-6)
    assert bool((found[..., 10:] > 0).any()) == (cache[0] > 0)  # a window has lost position 0


@pytest.mark.parametrize("name", ["Gemma 2 (sliding layers, soft cap)", "gpt-oss (sink logits, sliding layers)"])
def test_a_cache_that_evicts_nothing_is_full_attention(name: str) -> None:
    model = make(FAMILIES[name])
    columns = Columns([0])
    with torch.no_grad():
        observe(model, IDS, columns)
        found = stream_share(model, IDS, CacheSpec(1, 60))
    assert torch.allclose(found.mean(dim=-1), columns.alpha[..., 0], atol=1e-5)


def test_a_model_in_bfloat16_is_measured_in_float32() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    found = stream_share(model, IDS, CacheSpec(1, 8))
    assert found.dtype == torch.float32 and len(found[found < 1].unique()) > 300  # bfloat16 has 128 steps an octave


def test_models_with_attention_of_their_own_are_refused() -> None:
    with pytest.raises(UserError, match="Bloom"):
        stream_share(make(FAMILIES["ALiBi: Bloom"]), IDS, CacheSpec(1, 8))
