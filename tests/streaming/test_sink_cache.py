"""The cache for `generate` and plain forward calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import tiny_model
from family_models import FAMILIES, make, some_tokens
from torch import Tensor
from transformers import Cache, PreTrainedModel

import sinktrain
from sinktrain.base.errors import UserError
from sinktrain.streaming import CacheSpec, Positions, SinkCache, stream
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.reference import RollingLayer

SPEC = CacheSpec.parse("2+14")
GREEDY: dict[str, Any] = {
    "max_new_tokens": 40,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 2,
    "use_cache": True,
}
NAMES = ("Llama", "ALiBi: MPT", "Gemma 2 (sliding layers, soft cap)")


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make(FAMILIES[request.param])


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Tensor, spec: CacheSpec = SPEC, count: int = 40) -> Tensor:
    """The `count` tokens that follow `prompt`, one at a time through transformers' own attention."""
    positions = Positions.probe(model, spec.longest("cache"))
    layers = [RollingLayer(spec, "cache", rotary) for rotary in positions.rotary]
    rolling, tokens, out = Cache(layers=list(layers)), prompt.tolist(), []
    for step in range(len(prompt) + count - 1):
        place = layers[0].places([*layers[0].in_text, step])[-1:]
        where = {} if positions.slopes is not None else {"position_ids": place[None]}
        token = torch.tensor([[tokens[step]]])
        logits = model(input_ids=token, past_key_values=rolling, use_cache=True, **where).logits
        if step + 1 >= len(prompt):
            out.append(int(logits[0, -1].argmax()))
            tokens.append(out[-1])
    return torch.tensor(out)


@pytest.mark.parametrize("length", [1, 3, 16, 17, 50])
def test_generate_equals_token_by_token(model: PreTrainedModel, length: int) -> None:
    prompt = some_tokens(length, seed=length)
    expected = greedy(model, prompt)
    for more in ({}, {"prefill_chunk_size": 7}):
        cache = SinkCache.for_model(model, SPEC)
        found = model.generate(prompt[None], past_key_values=cache, **GREEDY, **more)[0, length:]
        assert found.tolist() == expected.tolist()
        assert int(cache.get_seq_length()) == length + 39  # the last token is not run
    with stream(model, "2+14"):
        assert model.generate(prompt[None], **GREEDY)[0, length:].tolist() == expected.tolist()


def test_generation_differs_from_that_of_a_full_cache() -> None:
    model, prompt = make(FAMILIES["Llama"]), some_tokens(50, seed=50)
    assert model.generate(prompt[None], **GREEDY)[0, 50:].tolist() != greedy(model, prompt).tolist()


def test_a_padded_batch_and_a_second_turn(model: PreTrainedModel) -> None:
    prompts, turns = [some_tokens(n, seed=n) for n in (3, 12, 50)], [some_tokens(n, seed=n) for n in (9, 1, 4)]
    ids, mask = pad(prompts)
    cache = SinkCache.for_model(model, SPEC)
    first = model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    for row, prompt in enumerate(prompts):
        assert first[row, 50:].tolist() == greedy(model, prompt).tolist()
    more, more_mask = pad(turns)
    whole, whole_mask = torch.cat((first, more), 1), torch.cat((mask, torch.ones(3, 40).long(), more_mask), 1)
    second = model.generate(whole, attention_mask=whole_mask, past_key_values=cache, **GREEDY)
    for row, (prompt, turn) in enumerate(zip(prompts, turns, strict=True)):
        everything = torch.cat((prompt, first[row, 50:], turn))
        assert second[row, whole.shape[1] :].tolist() == greedy(model, everything).tolist()


def pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((torch.full((width - len(row),), 2), row)) for row in rows])
    return ids, torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}])
def test_beams_and_sampling_equal_those_of_transformers_while_nothing_is_evicted(
    model: PreTrainedModel, how: dict[str, Any]
) -> None:
    ids = torch.stack([some_tokens(20, seed=1), some_tokens(20, seed=2)])
    options = {**GREEDY, **how}
    found = []
    for cache in (None, SinkCache.for_model(model, "2+100"), SinkCache.for_model(model, "dense")):
        torch.manual_seed(0)
        found.append(model.generate(ids, past_key_values=cache, **options).tolist())
    assert found[0] == found[1] == found[2]


def test_beams_beyond_the_cache_are_reordered() -> None:
    """The best beam's score is that of its tokens under a stream of their own."""
    model, prompt = make(FAMILIES["Llama"]), some_tokens(20)
    cache = SinkCache.for_model(model, SPEC)
    options = {**GREEDY, "num_beams": 4, "return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    found = model.generate(prompt[None], past_key_values=cache, **options)
    tokens = found.sequences[0]
    from sinktrain.streaming import stream_nll

    nll = stream_nll(model, tokens, SPEC)[len(prompt) - 1 :]
    assert float(found.sequences_scores[0]) == pytest.approx(-float(nll.sum()), abs=1e-3)


def test_what_takes_tokens_back_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="cannot take tokens back"):
        model.generate(
            some_tokens(40)[None],
            past_key_values=SinkCache.for_model(model, SPEC),
            prompt_lookup_num_tokens=3,
            **GREEDY,
        )


def test_memory_is_allocated_once_and_stays_where_it_is() -> None:
    model = make(FAMILIES["Llama"])
    cache, tokens = SinkCache.for_model(model, SPEC), some_tokens(300)
    places = []
    with torch.no_grad():
        for begin in range(0, 300, 30):
            model(input_ids=tokens[None, begin : begin + 29], past_key_values=cache)
            model(input_ids=tokens[None, begin + 29 : begin + 30], past_key_values=cache)
            rows = [layer for layer in cache.layers if isinstance(layer, SinkLayer)]
            assert [layer.rows for layer in rows] == [17] * 4 and len(cache.masks) < 10
            places.append([layer.keys.data_ptr() for layer in rows] + [layer.values.data_ptr() for layer in rows])
    assert all(place == places[0] for place in places)


def test_without_a_sink_cache_the_model_is_as_it_was(model: PreTrainedModel) -> None:
    ids = some_tokens(30)[None]
    with torch.no_grad():
        before, implementation = model(input_ids=ids).logits, model.config._attn_implementation
        model(input_ids=ids, past_key_values=SinkCache.for_model(model, SPEC))
        after = model(input_ids=ids).logits
    assert torch.equal(before, after) and model.config._attn_implementation == implementation
    assert not [name for name in vars(model.config) if "sinktrain" in name]
    assert not [part for part in model.modules() if "forward" in vars(part)]


def test_a_copy_of_the_model_streams_by_itself(model: PreTrainedModel) -> None:
    SinkCache.for_model(model, SPEC)
    twin, prompt = copy.deepcopy(model), some_tokens(20)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    found = twin.generate(prompt[None], past_key_values=SinkCache.for_model(twin, SPEC), **GREEDY)[0, 20:]
    assert found.tolist() == greedy(twin, prompt).tolist()


def test_a_forward_that_failed_halfway_is_not_gone_on_with() -> None:
    model = make(FAMILIES["Llama"])
    cache, ids = SinkCache.for_model(model, SPEC), some_tokens(20)[None]
    implementation = model.config._attn_implementation
    hook = model.model.layers[2].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("none left")))
    with pytest.raises(MemoryError):
        model(input_ids=ids, past_key_values=cache)
    hook.remove()
    assert model.config._attn_implementation == implementation
    with pytest.raises(UserError, match="failed halfway"):
        model(input_ids=ids, past_key_values=cache)
    cache.reset()
    with torch.no_grad():
        fresh = SinkCache.for_model(model, SPEC)
        expected = model(input_ids=ids, past_key_values=fresh).logits
        assert torch.equal(model(input_ids=ids, past_key_values=cache).logits, expected)


def test_bad_input_is_one_sentence() -> None:
    model = make(FAMILIES["Llama"])
    cache = SinkCache.for_model(model, SPEC)
    model(input_ids=some_tokens(5)[None], past_key_values=cache)
    with pytest.raises(UserError, match="holds 1 streams, not 2"):
        model(input_ids=some_tokens(10).view(2, 5), past_key_values=cache)
    with pytest.raises(UserError, match="attention_mask"):
        model(input_ids=some_tokens(5)[None], attention_mask=torch.ones(1, 1, 5, 5), past_key_values=cache)
    with pytest.raises(UserError, match="is not a cache"):
        SinkCache.for_model(model, "1023")
    with pytest.raises(UserError, match="use_cache=True"):
        model.generate(some_tokens(5)[None], past_key_values=cache, **{**GREEDY, "use_cache": False})
    with pytest.warns(UserWarning, match="holds 1024 positions, the model was trained for 512"):
        SinkCache.for_model(model, "4+1020")


def test_one_liners_stand_at_the_top() -> None:
    assert sinktrain.SinkCache is SinkCache and sinktrain.stream is stream


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Llama", "original"),
        ("Gemma 2 (sliding layers, soft cap)", "cache"),
        pytest.param("Llama", "cache", marks=pytest.mark.slow),
        pytest.param("Gemma 2 (sliding layers, soft cap)", "original", marks=pytest.mark.slow),
        pytest.param("gpt-oss (sink logits, sliding layers)", "cache", marks=pytest.mark.slow),
        pytest.param("gpt-oss (sink logits, sliding layers)", "original", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_decoding_step_is_one_graph_and_the_same(name: str, rule: Any) -> None:
    """fullgraph: a graph break would raise; no step compiles anew, before or after the cache has filled."""
    model, tokens = make(FAMILIES[name]), some_tokens(60)[None]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    plain, other = (SinkCache.for_model(model, SPEC, rule=rule) for _ in range(2))
    with torch.no_grad():
        for cache in (plain, other):
            model(input_ids=tokens[:, :5], past_key_values=cache)
        graphs = []
        for i in range(5, 60):
            expected = model(input_ids=tokens[:, i : i + 1], past_key_values=plain).logits
            found = compiled(input_ids=tokens[:, i : i + 1], past_key_values=other).logits
            assert torch.allclose(found, expected, atol=1e-5)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.0)])
@pytest.mark.parametrize("rule", ["cache", "original"])
def test_token_33_million_is_as_exact_as_token_0(dtype: torch.dtype, bound: float, rule: Any) -> None:
    """The same stream from position 0, 4,194,304 and 33,554,432 on: distances, not positions, decide."""
    model, tokens = tiny_model("llama").to(dtype), some_tokens(120)[None]
    with torch.no_grad():
        found = []
        for origin in (0, 4_194_304, 33_554_432):
            cache = SinkCache.for_model(model, SPEC, rule=rule)
            cache.origin = origin
            parts = [model(input_ids=tokens[:, :60], past_key_values=cache).logits]
            parts += [model(input_ids=tokens[:, i : i + 1], past_key_values=cache).logits for i in range(60, 120)]
            found.append(torch.cat(parts, dim=1).float())
        exact = tiny_model("llama", torch.float64)
        truth = exact(input_ids=tokens, past_key_values=SinkCache.for_model(exact, SPEC, rule=rule)).logits
    errors = [float((logits - truth).abs().mean()) for logits in found]
    assert errors[1] < 1.2 * errors[0] + 1e-7 and errors[2] < 1.2 * errors[0] + 1e-7
    if dtype == torch.float32:
        assert float((found[0] - found[2]).abs().max()) < 20 * bound


def test_float32_angles_would_not_be_exact_there() -> None:
    """Teeth for the test above: transformers' own angles at position 33,554,432 move logits."""
    model, tokens = tiny_model("llama"), some_tokens(60)[None]
    with torch.no_grad():
        near, far = (model(input_ids=tokens, position_ids=torch.arange(60)[None] + p).logits for p in (0, 33_554_432))
    assert float((near - far).abs().max()) > 0.05
