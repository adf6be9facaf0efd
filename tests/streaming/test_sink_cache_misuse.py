"""What could go wrong in silence: each ends in a sentence, or is right."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from conftest import tiny_model
from family_models import FAMILIES, make, masked_nll, some_tokens
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.streaming import CacheSpec, Positions, SinkCache, attach, stream, stream_nll

SPEC = CacheSpec.parse("2+14")


@pytest.fixture
def model() -> PreTrainedModel:
    return make(FAMILIES["Llama"])


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    return model(input_ids=ids, past_key_values=SinkCache.for_model(model, SPEC), **more).logits


@torch.no_grad()
def test_arguments_by_position_are_seen(model: PreTrainedModel) -> None:
    ids, mask = some_tokens(40).view(2, 20), torch.ones(2, 20).long()
    mask[0, :7] = 0
    expected = logits(model, ids, attention_mask=mask)
    names = list(attach.inspect.signature(model.forward).parameters)
    assert names[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values"]
    found = model(ids, mask, None, SinkCache.for_model(model, SPEC)).logits
    assert torch.equal(found[:, 7:], expected[:, 7:])
    assert torch.equal(
        model(ids, mask, past_key_values=SinkCache.for_model(model, SPEC)).logits[:, 7:], expected[:, 7:]
    )


def test_a_model_that_was_not_made_ready_says_so(model: PreTrainedModel) -> None:
    cache, other = SinkCache.for_model(model, SPEC), make(FAMILIES["Llama"])
    for forward in (model.model, other):
        with pytest.raises(UserError, match="not made ready"):
            forward(input_ids=some_tokens(5)[None], past_key_values=cache)


@torch.no_grad()
def test_an_interrupted_forward_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    """Ctrl-C is no Exception, so that torch runs no hook after it."""
    ids = some_tokens(30)[None]
    expected = model(input_ids=ids).logits
    cache = SinkCache.for_model(model, SPEC)
    hook = model.model.layers[2].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        model(input_ids=ids, past_key_values=cache)
    hook.remove()
    assert torch.equal(model(input_ids=ids).logits, expected)
    with pytest.raises(UserError, match="failed halfway"):
        model(input_ids=ids, past_key_values=cache)
    assert torch.equal(logits(model, ids), logits(make(FAMILIES["Llama"]), ids))


def test_blocks_in_each_other(model: PreTrainedModel) -> None:
    ids, options = some_tokens(40)[None], {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 2}
    with stream(model, "2+14"):
        outer = model.generate(ids, **options)
        with stream(model, "1+5"):
            inner = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, **options), outer)
    assert "generate" not in vars(model) and not torch.equal(inner, outer)


def test_gradients_do_not_pile_up_in_the_cache(model: PreTrainedModel) -> None:
    cache = SinkCache.for_model(model, SPEC)
    for token in some_tokens(30):
        found = model(input_ids=token.view(1, 1), past_key_values=cache).logits
    assert found.requires_grad and not any(layer.keys.requires_grad for layer in cache.layers)  # type: ignore[union-attr]
    model.train()
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        model(input_ids=some_tokens(5)[None], past_key_values=SinkCache.for_model(model, SPEC))
    del found
    gc.collect()


def test_a_stream_goes_on_outside_of_inference_mode(model: PreTrainedModel) -> None:
    ids, cache = some_tokens(40)[None], SinkCache.for_model(model, SPEC)
    with torch.inference_mode():
        model(input_ids=ids[:, :30], past_key_values=cache)
    with torch.no_grad():
        found = model(input_ids=ids[:, 30:], past_key_values=cache).logits
    assert torch.allclose(found, logits(model, ids)[:, 30:], atol=1e-5)


def test_masks_do_not_pile_up(model: PreTrainedModel) -> None:
    cache, dense = SinkCache.for_model(model, SPEC), SinkCache.for_model(model, "dense")
    with torch.no_grad():
        for length in range(2, 40):
            for one in (cache, dense):
                model(input_ids=some_tokens(length)[None], past_key_values=one)
    assert len(cache.masks) <= 8 and not dense.masks
    cache.reset()
    assert not cache.masks


def test_a_layer_that_attends_twice_is_refused_each_time() -> None:
    model = make({"model_type": "diffllama"})
    for _ in range(2):
        with pytest.raises(UserError, match=r"DiffLlamaForCausalLM cannot stream.*attends twice"):
            SinkCache.for_model(model, SPEC)
    ids = some_tokens(20)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, make({"model_type": "diffllama"})(input_ids=ids).logits)


def test_attention_that_does_more_than_the_interface_says_is_refused(
    model: PreTrainedModel, request: pytest.FixtureRequest
) -> None:
    right = attach.stream_attention
    AttentionInterface.register(attach.NAME, lambda *a, **k: (right(*a, **k)[0] * 1.01, None))
    request.addfinalizer(lambda: AttentionInterface.register(attach.NAME, right))
    with pytest.raises(UserError, match="does more than the interface"):
        SinkCache.for_model(model, SPEC)


@torch.no_grad()
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_whole_are_not_taken_for_unknown_positions(model: PreTrainedModel, broken: float) -> None:
    model.model.layers[1].mlp.down_proj.weight[3, 5] = broken
    with pytest.raises(UserError, match=r"^model.name: what it caches is not finite; .* whole\.$"):
        SinkCache.for_model(model, SPEC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotations_alike_at_near_positions_are_told_apart(dtype: torch.dtype) -> None:
    """OLMo 3's full layers are scaled, its sliding layers are not: in bfloat16 they differ only farther away."""
    scaled = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64}
    plain = {"rope_type": "default", "rope_theta": 5e5}
    fields = {
        "model_type": "olmo3", "sliding_window": 12, "head_dim": 32,
        "rope_parameters": {"full_attention": scaled, "sliding_attention": plain},
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    }  # fmt: skip
    model = make(fields, dtype)
    found = [layer.frequencies for layer in Positions.probe(model).rotary if layer is not None]
    wanted = [layer.frequencies for layer in Positions.probe(make(fields)).rotary if layer is not None]
    assert all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(found, wanted, strict=True))
    assert float((wanted[0] - wanted[3]).abs().max()) > 1e-4
    if dtype == torch.float32:
        tokens, spec = some_tokens(), CacheSpec.parse("2+30")
        assert (
            float((stream_nll(model, tokens, spec, rule="original") - masked_nll(model, tokens, spec)).abs().max())
            < 1e-5
        )


def test_a_model_in_training_mode_is_probed_without_dropout() -> None:
    model = make({"model_type": "phi", "partial_rotary_factor": 0.5, "resid_pdrop": 0.3, "embd_pdrop": 0.3}).train()
    assert all(Positions.probe(model).rotary) and model.training
    assert tiny_model("llama").training is False
