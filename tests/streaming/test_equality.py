"""The chunk-parallel evaluator equals token-by-token decoding, and these tests would notice if it did not."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCABULARY, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinktrain.streaming import CacheSpec, reference_nll, stream_nll
from sinktrain.streaming import chunk as chunk_module
from sinktrain.streaming.step import Step

CACHES = ["0+16", "1+15", "2+14", "4+12", "1+1", "4+200", "dense"]
CHUNKS = [1, 7, 64, 10_000]


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.numel() > 0
    return float((a - b).abs().max())


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_token_by_token(family: str, cache: str, dtype: torch.dtype, bound: float, text: Tensor) -> None:
    model = tiny_model(family, dtype)
    spec = CacheSpec.parse(cache)
    reference = reference_nll(model, text, spec)
    assert reference.dtype == dtype
    for chunk in CHUNKS:
        assert largest_difference(stream_nll(model, text, spec, chunk=chunk), reference) < bound


@pytest.mark.parametrize("cache", ["1+15", "4+12", "0+16"])
def test_original_position_rule(family: str, cache: str, text: Tensor) -> None:
    model, spec = tiny_model(family, torch.float64), CacheSpec.parse(cache)
    reference = reference_nll(model, text, spec, rule="original")
    for chunk in CHUNKS:
        assert largest_difference(stream_nll(model, text, spec, rule="original", chunk=chunk), reference) < 1e-10
    if spec.sinks:  # the two rules differ, so the test above can fail
        assert largest_difference(reference, reference_nll(model, text, spec)) > 1e-2


@settings(max_examples=40, deadline=None)
@given(
    sinks=st.integers(0, 5), recent=st.integers(1, 40), chunk=st.integers(1, 60), length=st.integers(5, 70),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_cache_and_chunk(sinks: int, recent: int, chunk: int, length: int, seed: int) -> None:
    model, spec = tiny_model("llama", torch.float64), CacheSpec(sinks, recent)
    text = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    found = stream_nll(model, text, spec, chunk=chunk)
    assert largest_difference(found, reference_nll(model, text, spec)) < 1e-10


def test_dense_equals_a_plain_forward(family: str, text: Tensor) -> None:
    model = tiny_model(family)
    logits = model(input_ids=text[None, :-1]).logits[0].detach()
    plain = torch.nn.functional.cross_entropy(logits, text[1:], reduction="none")
    assert largest_difference(stream_nll(model, text, CacheSpec.parse("dense"), chunk=13), plain) < 1e-4


def test_window_and_streaming_equal_dense_until_the_cache_is_full(text: Tensor) -> None:
    model = tiny_model("llama", torch.float64)
    dense = stream_nll(model, text, CacheSpec.parse("dense"))
    for cache in ("0+16", "4+12"):
        found = stream_nll(model, text, CacheSpec.parse(cache))
        assert largest_difference(found[:17], dense[:17]) < 1e-12  # eviction comes after a step: C cached and itself
        assert largest_difference(found[17:], dense[17:]) > 1e-2


def test_batch_equals_its_rows() -> None:
    model, spec = tiny_model("llama", torch.float64), CacheSpec.parse("2+14")
    rows = torch.randint(0, VOCABULARY, (3, 50), generator=torch.Generator().manual_seed(4))
    together = stream_nll(model, rows, spec, chunk=9)
    for row, found in zip(rows, together, strict=True):
        assert largest_difference(found, stream_nll(model, row, spec)) < 1e-12


def test_bfloat16_is_near_float32(text: Tensor) -> None:
    spec = CacheSpec.parse("1+15")
    exact = stream_nll(tiny_model("llama"), text, spec)
    rough = stream_nll(tiny_model("llama").to(torch.bfloat16), text, spec)
    # A random model amplifies rounding; what matters is that it is no worse than token by token in bfloat16.
    reference = reference_nll(tiny_model("llama").to(torch.bfloat16), text, spec)
    error, reference_error = (rough - exact).abs().mean(), (reference - exact).abs().mean()
    assert 0 < error < 2 * reference_error + 1e-3


def test_a_band_off_by_one_is_seen(text: Tensor) -> None:
    """Teeth: a cache of y - 1 or y + 1 recent keys is not the same as one of y."""
    model = tiny_model("llama")
    reference = reference_nll(model, text, CacheSpec(1, 15))
    for wrong in (14, 16):
        assert largest_difference(stream_nll(model, text, CacheSpec(1, wrong)), reference) > 0.05


def test_a_broken_band_inside_the_evaluator_is_seen(text: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: the evaluator's own mask, with one key too few, fails the equality."""
    model, spec = tiny_model("llama"), CacheSpec.parse("1+15")
    reference = reference_nll(model, text, spec)
    right = chunk_module._band_bias

    def wrong(stream: object, layer: object, rows: int, keys: int, ahead: int, *more: object) -> Tensor:
        distance = ahead + torch.arange(rows)[:, None] - torch.arange(keys)
        bias = right(stream, layer, rows, keys, ahead, *more)
        return bias.masked_fill((distance == spec.recent).repeat(bias.shape[2] // rows, 1), float("-inf"))

    monkeypatch.setattr(chunk_module, "_band_bias", wrong)
    assert largest_difference(stream_nll(model, text, spec), reference) > 0.05


@pytest.mark.parametrize("chunk", [1, 64])
def test_sinks_left_at_their_original_distance_are_seen(
    chunk: int, text: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teeth: forgetting to turn the query, or the sinks, fails the equality."""
    model, spec = tiny_model("llama"), CacheSpec.parse("4+12")
    reference = reference_nll(model, text, spec)
    monkeypatch.setattr(Step, "in_cache", lambda self, positions: positions)
    assert largest_difference(stream_nll(model, text, spec, chunk=chunk), reference) > 0.05
