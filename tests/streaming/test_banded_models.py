"""Whole models in training with a band: losses are those of the stream, gradients those of a dense mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Float64Rotary, tiny_model
from dense_band import dense_attention
from family_models import FAMILIES, REFUSED, make, some_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.streaming import CacheSpec, blocks, reference_nll, stream_nll
from sinktrain.streaming.band import Band
from sinktrain.streaming.observe import attention_columns
from sinktrain.streaming.train import NAME, Banded, band_aside, band_spec

CACHES = ["0+7", "1+1", "1+7", "2+13", "4+9", "1+60"]
ROTARY = {
    name: FAMILIES[name]
    for name in (
        "Llama", "Mistral", "Qwen2", "Qwen3 (query and key norms)", "GPT-NeoX, Pythia (a quarter rotated)",
        "Phi (half of a head rotated)", "Gemma", "RoPE scaling `yarn`", "RoPE scaling `llama3`",
    )
}  # fmt: skip
LENGTH_KINDS = ("RoPE scaling `dynamic`", "RoPE scaling `longrope`")


def exact(fields: dict[str, Any]) -> PreTrainedModel:
    """A model in float64, its angles too."""
    model = make(fields, torch.float64)
    model.base_model.rotary_emb = Float64Rotary(model.base_model.rotary_emb)  # type: ignore[assignment]
    return model


def nll(model: PreTrainedModel, banded: Banded, tokens: Tensor) -> Tensor:
    """NLL (B, T-1) of tokens (B, T), as training has it."""
    logits = model(**banded.inputs(tokens[:, :-1])).logits
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def gradients(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """Of a sum of logits with random weights, for all parameters and the embedded inputs; and the logits."""
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    model.zero_grad()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    generator = torch.Generator().manual_seed(3)
    (logits * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert embedded.grad is not None and len(found) >= len(list(model.parameters())) - 2
    return {"logits": logits.detach(), "inputs": embedded.grad, **{n: g.clone() for n, g in found.items()}}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor (of one that is all rounding, of all)."""
    assert found.keys() == expected.keys() and found
    largest = {name: float(x.abs().max()) for name, x in expected.items()}
    least = 1e-4 * max(largest.values())
    return max(float((found[n] - x).abs().max()) / max(largest[n], least) for n, x in expected.items())


def dense_gradients(
    model: PreTrainedModel, tokens: Tensor, cache: tuple[int, int], rule: str = "cache"
) -> dict[str, Tensor]:
    """The same model with T x T scores."""
    frequencies = model.base_model.rotary_emb.inv_freq
    AttentionInterface.register("dense_band", dense_attention(cache, rule, frequencies))  # type: ignore[arg-type]
    with band_aside(model):
        before, model.config._attn_implementation = model.config._attn_implementation, "dense_band"
        try:
            return gradients(model, tokens)
        finally:
            model.config._attn_implementation = before


def batch(length: int) -> Tensor:
    return torch.stack((some_tokens(length, 1), some_tokens(length, 2)))


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("rule", ["cache", "original"])
def test_losses_are_those_of_the_stream_and_gradients_those_of_a_dense_mask(
    name: str, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROWS", 16)
    model, tokens = exact(ROTARY[name]), batch(50)
    for cache in CACHES:
        spec = CacheSpec.parse(cache)
        banded = Banded(model, spec, rule)
        found = nll(model, banded, tokens).detach()
        assert float((found - stream_nll(model, tokens, spec, rule=rule)).abs().max()) < 1e-10
        assert banded.at_work  # after a stream too
        with band_aside(model):
            reference = reference_nll(model, tokens[0], spec, rule=rule)
        assert float((found[0] - reference).abs().max()) < 1e-10
        mine = gradients(model, tokens)
        assert distance(mine, dense_gradients(model, tokens, (spec.sinks, spec.recent or 0), rule)) < 1e-10, cache
        banded.end()


@settings(max_examples=25, deadline=None)
@given(
    x=st.integers(0, 5), y=st.integers(1, 40), length=st.integers(2, 70), rule=st.sampled_from(["cache", "original"]),
    rows=st.sampled_from([3, 16, 128]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_cache_and_length(x: int, y: int, length: int, rule: Any, rows: int, seed: int) -> None:
    model, tokens, spec = tiny_model("llama", torch.float64, seed), batch(length), CacheSpec(x, y)
    before, blocks.ROWS = blocks.ROWS, rows
    try:
        banded = Banded(model, spec, rule)
        if x < length:
            found = nll(model, banded, tokens).detach()
            assert float((found - stream_nll(model, tokens, spec, rule=rule)).abs().max()) < 1e-10
        banded.begin()
        assert distance(gradients(model, tokens), dense_gradients(model, tokens, (x, y), rule)) < 1e-10
    finally:
        blocks.ROWS = before


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in LENGTH_KINDS])
def test_all_families(name: str) -> None:
    """Losses of the stream; and where everything is visible, the gradients of the model's own attention."""
    model, tokens = make(FAMILIES[name]), batch(60)
    spec = CacheSpec(2, 17)
    expected = stream_nll(model, tokens, spec)
    banded = Banded(model, spec)
    assert float((nll(model, banded, tokens).detach() - expected).abs().max()) < 1e-5
    banded.end()
    own = loss_gradients(model, tokens, {})
    banded = Banded(model, CacheSpec(1, 60))
    found = loss_gradients(model, tokens, banded.inputs(tokens))
    banded.end()
    assert distance(found, own) < 1e-4


def loss_gradients(model: PreTrainedModel, tokens: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(**{"input_ids": tokens, "use_cache": False, **inputs}).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["zero", "logit", "kv"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_outlets(kind: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients are checked in `test_band`; here that they are in their place, and get one."""
    monkeypatch.setattr(blocks, "ROWS", 16)
    model, tokens, spec = tiny_model(family, torch.float64), batch(50), CacheSpec(1, 9)
    add_outlet(model, SinkConfig(kind=kind))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sink" in name:
                weight.normal_(std=2)
    expected = stream_nll(model, tokens, spec)
    found = nll(model, Banded(model, spec), tokens)
    assert float((found - expected).abs().max()) < 1e-10
    found.sum().backward()
    learned = [weight for name, weight in model.named_parameters() if "sink" in name]
    assert len(learned) == {"zero": 0, "logit": 3, "kv": 6}[kind]
    assert all(weight.grad is not None and float(weight.grad.abs().max()) > 1e-3 for weight in learned)


@pytest.mark.parametrize("name", ["Llama", "ALiBi: Bloom"])
def test_recomputed_activations_change_no_gradient(name: str) -> None:
    model, tokens = make(FAMILIES[name]), batch(60)
    banded = Banded(model.train(), CacheSpec(2, 17))
    kept = loss_gradients(model, tokens, banded.inputs(tokens))
    model.gradient_checkpointing_enable()
    assert distance(loss_gradients(model, tokens, banded.inputs(tokens)), kept) < 1e-5


@pytest.mark.parametrize("name", ["Llama", "ALiBi: Bloom"])
def test_others_look_at_the_model_meanwhile(name: str) -> None:
    """A stream through the model, and a look at its full attention, leave the band at work."""
    model, tokens, spec = make(FAMILIES[name]), batch(60), CacheSpec(1, 17)
    expected = stream_nll(model, tokens, CacheSpec(0, 9))
    seen = None if name != "Llama" else attention_columns(model, tokens, [0], check=True)[0].detach()
    banded = Banded(model, spec)
    before = nll(model, banded, tokens).detach()
    assert torch.equal(stream_nll(model, tokens, CacheSpec(0, 9)), expected)
    assert torch.equal(nll(model, banded, tokens).detach(), before)
    if seen is not None:
        assert torch.equal(attention_columns(model, tokens, [0], check=True)[0].detach(), seen)
    with band_aside(model):
        assert float((nll_of_own(model, tokens) - before).abs().max()) > 1e-2
    assert torch.equal(nll(model, banded, tokens).detach(), before)


@torch.no_grad()
def nll_of_own(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def test_a_validation_in_inference_mode_may_come_first() -> None:
    """What is kept for later samples must not be of that mode."""
    model, tokens = make(FAMILIES["Llama"]), batch(60)
    banded = Banded(model, CacheSpec(1, 17))
    with torch.inference_mode():
        before = nll(model, banded, tokens).clone()
    found = nll(model, banded, tokens)
    found.sum().backward()
    assert torch.equal(found.detach(), before)


def test_a_model_is_its_own_again_afterwards() -> None:
    model, tokens = make(FAMILIES["ALiBi: Bloom"]), batch(60)
    before, implementation = nll_of_own(model, tokens), model.config._attn_implementation
    banded = Banded(model, CacheSpec(1, 7))
    banded.begin()
    banded.begin()
    assert model.config._attn_implementation == NAME
    banded.end()
    banded.end()
    assert model.config._attn_implementation == implementation
    assert torch.equal(nll_of_own(model, tokens), before)


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_a_streaming_form(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name][1]):
        Banded(make(REFUSED[name][0]), CacheSpec(1, 7))


@pytest.mark.parametrize("name", LENGTH_KINDS)
def test_rotations_that_depend_on_the_length_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="depends on the length"):
        Banded(make(FAMILIES[name]), CacheSpec(1, 7))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Llama", {"attention_dropout": 0.1}),
        ("ALiBi: Bloom", {"hidden_dropout": 0.1}),
        ("ALiBi: MPT", {"attn_config": {"attn_pdrop": 1}}),
    ],
)
def test_dropout_is_refused(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"has \w+ (0.1|1), which"):
        Banded(make({**FAMILIES[name], **fields}), CacheSpec(1, 7))


def test_what_is_no_whole_sample_is_refused() -> None:
    model, tokens = make(FAMILIES["Llama"]), batch(20)
    banded = Banded(model, CacheSpec(1, 7))
    with pytest.raises(UserError, match="packing document"):
        banded.inputs(tokens, torch.arange(20)[None] % 10)
    banded.begin()
    with pytest.raises(UserError, match="without padding or a cache"):
        model.generate(tokens, max_new_tokens=3)
    banded.end()
    assert model.generate(tokens, max_new_tokens=3).shape == (2, 23)


@pytest.mark.parametrize(
    ("text", "sinks", "trained", "rule", "words"),
    [
        ("dense", 1, None, "cache", "is full attention"),
        ("1023", 1, None, "cache", "model.band '1023': is not a cache"),
        ("1+0", 1, None, "cache", "is not a cache"),
        ("1+30", 2, None, "cache", "keeps 1 of the model's 2 sinks"),
        ("1+512", 1, 512, "cache", r"514 positions at once.*use 1\+510 or less"),
        ("1+30", 1, None, "text", "band_rule text"),
    ],
)
def test_settings_that_mean_nothing(text: str, sinks: int, trained: int | None, rule: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        band_spec(text, sinks, trained, rule)


def test_settings_that_fit() -> None:
    assert band_spec("1+510", 1, 512, "cache") == CacheSpec(1, 510)
    assert band_spec("4+4000", 1, 512, "original") == CacheSpec(4, 4000)


@pytest.mark.parametrize("wrong", ["band", "distance"])
def test_a_slip_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: y keys in place of y + 1, and sinks at their distance in the text."""
    model, tokens, spec = tiny_model("llama", torch.float64), batch(60), CacheSpec(2, 13)
    expected = stream_nll(model, tokens, spec)
    dense = dense_gradients(model, tokens, (2, 13))
    if wrong == "band":
        monkeypatch.setattr(blocks, "in_band", lambda d, recent: (d >= 0) & (d < recent))
    else:
        monkeypatch.setattr(Band, "in_cache", lambda self, positions: positions)
    banded = Banded(model, spec)
    assert float((nll(model, banded, tokens).detach() - expected).abs().max()) > 0.02
    assert distance(gradients(model, tokens), dense) > 0.05
