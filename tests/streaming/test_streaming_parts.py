"""Cache specs, refusals, recompute, and memory that does not grow with the text."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCABULARY, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sinktrain.base.errors import UserError
from sinktrain.streaming import CacheSpec, Rotary, recompute_nll, reference_nll, stream_nll
from sinktrain.streaming.attention import StreamState, attention_with_lse


@pytest.mark.parametrize(("text", "sinks", "recent", "method"), [
    ("1+1023", 1, 1023, "streaming"), (" 0+16 ", 0, 16, "window"), ("dense", 0, None, "dense")])  # fmt: skip
def test_parse(text: str, sinks: int, recent: int | None, method: str) -> None:
    spec = CacheSpec.parse(text)
    assert (spec.sinks, spec.recent, spec.method) == (sinks, recent, method)
    assert CacheSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["1+0", "x", "", "+", "1", "-1+4", "1+1.5", "1+1+1", "0+0"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UserError, match="--caches"):
        CacheSpec.parse(text, "--caches")


def other_model(kind: str, **fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).eval()


def test_models_without_rotary_positions_are_refused() -> None:
    gpt2 = other_model("gpt2", n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=64)
    with pytest.raises(UserError, match="GPT2LMHeadModel cannot stream"):
        stream_nll(gpt2, torch.arange(20), CacheSpec(1, 7))
    opt = other_model(
        "opt", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=64,
        word_embed_proj_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(UserError, match="cannot stream"):
        stream_nll(opt, torch.arange(20), CacheSpec(1, 7))
    bloom = other_model("bloom", hidden_size=32, n_layer=2, n_head=2, vocab_size=64)
    with pytest.raises(UserError, match="cannot stream"):
        stream_nll(bloom, torch.arange(20), CacheSpec(1, 7))


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}])
def test_frequencies_that_change_with_length_are_refused(scaling: dict[str, object], text: Tensor) -> None:
    with pytest.raises(UserError, match="change with the length"):
        stream_nll(tiny_model("llama", rope_parameters=scaling), text, CacheSpec(2, 14))


@pytest.mark.parametrize("scaling", [
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}])  # fmt: skip
def test_fixed_scalings_are_exact(scaling: dict[str, object], text: Tensor) -> None:
    model, spec = tiny_model("llama", rope_parameters=scaling), CacheSpec(2, 14)
    found, expected = stream_nll(model, text, spec, chunk=9), reference_nll(model, text, spec)
    assert float((found - expected).abs().max()) < 1e-5


def test_a_chunk_of_nothing_is_refused(text: Tensor) -> None:
    with pytest.raises(ValueError, match="chunk"):
        stream_nll(tiny_model("llama"), text, CacheSpec(2, 14), chunk=0)


def test_scores_of_the_plain_path_are_not_rounded_to_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (4 * torch.randn(1, 2, 30, 16, generator=generator) for _ in range(2))
    v = torch.randn(1, 2, 30, 8, generator=generator)  # another width than the keys': no fused kernel
    exact, _ = attention_with_lse(q.bfloat16().double(), k.bfloat16().double(), v.bfloat16().double(), None, 0.25)
    found, lse = attention_with_lse(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, 0.25)
    assert lse.dtype == torch.float32
    assert float((found.double() - exact).abs().mean()) < 2e-3


def test_a_narrower_sliding_window_is_refused(text: Tensor) -> None:
    model = tiny_model("mistral", sliding_window=8)
    with pytest.raises(UserError, match="sliding window of 8"):
        stream_nll(model, text, CacheSpec(1, 15))


def test_the_attention_implementation_is_put_back_even_after_an_error(text: Tensor) -> None:
    model = tiny_model("mistral", sliding_window=8)
    before = model.config._attn_implementation
    with pytest.raises(UserError):
        stream_nll(model, text, CacheSpec(1, 15))
    assert model.config._attn_implementation == before


def test_probe_finds_layers_without_positions() -> None:
    model = other_model(
        "smollm3", hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, no_rope_layers=[1, 1, 1, 0], pad_token_id=0,
    )  # fmt: skip
    assert Rotary.probe(model).layers == (True, True, True, False)


def test_turn_composes_and_keeps_lengths() -> None:
    rotary = Rotary(torch.tensor([1.0, 0.1], dtype=torch.float64), False, (True,))
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64)  # two dimensions of six are not rotated
    there = rotary.turn(x, torch.tensor([5, 6, 7]))
    assert torch.allclose(rotary.turn(there, torch.tensor([-5, -6, -7])), x)
    assert torch.equal(there[..., 4:], x[..., 4:]) and not torch.allclose(there[..., :4], x[..., :4])
    assert torch.allclose(there.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_attention_with_lse_against_a_written_out_softmax(heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads[0], 5, 8, generator=generator, dtype=torch.float64) * 5
    k, v = (torch.randn(2, heads[1], 600, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(5, 600, dtype=torch.float64)
    mask[:, :550] = float("-inf")  # whole blocks of a fused kernel are hidden
    mask[2, 580:] = float("-inf")
    output, lse = attention_with_lse(q, k, v, mask, 0.3)
    full_k, full_v = (x.repeat_interleave(heads[0] // heads[1], dim=1) for x in (k, v))
    scores = torch.einsum("bhld,bhnd->bhln", q, full_k) * 0.3 + mask
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-12)
    assert torch.allclose(output, scores.softmax(-1) @ full_v, atol=1e-12)


def test_recompute_is_a_fresh_forward_with_the_sinks_in_front(text: Tensor) -> None:
    model, targets = tiny_model("llama"), [16, 17, 40, 89]
    found = recompute_nll(model, text, targets, 16, sink_ids=[3, 4], batch=3)
    for n, nll in zip(targets, found, strict=True):
        window = torch.cat((torch.tensor([3, 4]), text[n - 16 : n]))[None]
        logits = model(input_ids=window).logits[0, -1].detach()
        assert float(nll) == pytest.approx(float(-logits.log_softmax(-1)[text[n]]), abs=1e-4)


@pytest.mark.parametrize("target", [15, 90])
def test_recompute_refuses_targets_without_a_window(text: Tensor, target: int) -> None:
    with pytest.raises(ValueError, match="targets"):
        recompute_nll(tiny_model("llama"), text, [target], 16)


def test_what_is_kept_does_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 40 times the cache, each layer holds x sinks, y recent keys, and a few masks."""
    states: list[StreamState] = []
    start = StreamState.__init__
    monkeypatch.setattr(StreamState, "__init__", lambda self, **given: (start(self, **given), states.append(self))[0])
    text = torch.randint(0, VOCABULARY, (20 * 40,), generator=torch.Generator().manual_seed(0))
    stream_nll(tiny_model("llama"), text, CacheSpec(2, 18), chunk=33, rebase_after=100)
    (state,) = states
    assert len(state.layers) == 3 and state.base > 500
    for layer in state.layers.values():
        assert layer.keys.shape[2] == layer.values.shape[2] == 18
        assert layer.sink_keys.shape[2] == layer.sink_values.shape[2] == 2
        assert layer.keys.untyped_storage().nbytes() <= 3 * 18 * 2 * 8 * 4 + 33 * 2 * 8 * 4
    assert len(state._masks) < 10
