"""Models whose softmax has an outlet stream exactly, and the outlet keeps its place."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCABULARY, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.streaming import CacheSpec, SinkCache, reference_nll, stream_nll
from sinktrain.streaming.recompute import recompute_nll

KINDS = {
    "zero": SinkConfig(kind="zero"),
    "logit": SinkConfig(kind="logit"),
    "kv": SinkConfig(kind="kv"),
    "k": SinkConfig(kind="kv", value="zero"),
}
TEXT = torch.randint(0, VOCABULARY, (70,), generator=torch.Generator().manual_seed(5))


def with_outlet(kind: str, family: str = "llama", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model whose outlet gets a good part of the attention, another one in each head."""
    model = tiny_model(family, dtype)
    add_outlet(model, KINDS[kind])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sink" in name:
                weight.copy_(2 * torch.randn(weight.shape, generator=generator))
    return model


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.numel() > 0
    return float((a - b).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["cache", "original"])
def test_equals_token_by_token(kind: str, rule: str, family: str) -> None:
    model = with_outlet(kind, family)
    for cache in ("0+16", "1+15", "4+12", "dense"):
        spec = CacheSpec.parse(cache)
        reference = reference_nll(model, TEXT, spec, rule=rule)
        for chunk in (1, 7, 1000):
            assert largest_difference(stream_nll(model, TEXT, spec, rule=rule, chunk=chunk), reference) < 1e-10, cache
    plain = stream_nll(tiny_model(family, torch.float64), TEXT, spec, rule=rule)
    assert largest_difference(plain, reference) > 1e-2  # the outlet does something


@pytest.mark.parametrize("kind", KINDS)
def test_dense_equals_a_plain_forward(kind: str) -> None:
    model = with_outlet(kind)
    logits = model(input_ids=TEXT[None, :-1], use_cache=False).logits[0].detach()
    plain = torch.nn.functional.cross_entropy(logits, TEXT[1:], reduction="none")
    assert largest_difference(stream_nll(model, TEXT, CacheSpec.parse("dense"), chunk=13), plain) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_generating_and_recomputing_have_the_outlet(kind: str) -> None:
    """`generate` with transformers' own cache, and windows computed afresh, against plain forward calls."""
    model = with_outlet(kind)
    found = model.generate(TEXT[None, :9], max_new_tokens=6, do_sample=False)
    for end in range(9, 15):
        assert int(model(input_ids=found[:, :end], use_cache=False).logits[0, -1].argmax()) == int(found[0, end])
    window = model(input_ids=TEXT[None, 10:26], use_cache=False).logits[0, -1].detach()
    expected = torch.nn.functional.cross_entropy(window[None], TEXT[26:27])
    assert float(recompute_nll(model, TEXT, [26], 16)[0] - expected) == pytest.approx(0, abs=1e-12)
    cache = SinkCache.for_model(model, "1+400")
    assert torch.equal(model.generate(TEXT[None, :9], past_key_values=cache, max_new_tokens=6, do_sample=False), found)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_batches_equal_their_rows(kind: str) -> None:
    model = with_outlet(kind, dtype=torch.float32)
    ids = torch.cat((torch.full((1, 5), 2), TEXT[None, :20]), dim=1)
    mask = (torch.arange(25) >= 5).long()[None]
    with torch.no_grad():
        alone = model(input_ids=ids[:, 5:]).logits
        places = (mask.cumsum(1) - 1).clamp(min=0)
        assert torch.allclose(
            model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 5:], alone, atol=1e-4
        )
        cache = SinkCache.for_model(model, "2+200")
        assert torch.allclose(
            model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, 5:], alone, atol=1e-4
        )


def test_a_query_that_is_not_turned_for_the_outlets_key_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: the key of `kv` at the wrong distance fails the equality."""
    model, spec = with_outlet("kv"), CacheSpec.parse("1+15")
    reference = reference_nll(model, TEXT, spec)
    monkeypatch.setattr(
        "sinktrain.streaming.step.Step.from_start", lambda step, rotary, dtype: step.tokens(rotary, dtype)
    )
    assert largest_difference(stream_nll(model, TEXT, spec), reference) > 1e-3
