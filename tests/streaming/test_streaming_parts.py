"""Cache specs, refusals, recompute, and memory that does not grow with the text."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import with_outlet
from sinktrain.streaming import CacheSpec, recompute_nll, stream_nll
from sinktrain.streaming.kernels import Scores, attention_with_lse, merge
from sinktrain.streaming.nll import token_nll
from sinktrain.streaming.rotary import Rotary


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


def test_a_chunk_of_nothing_is_refused(text: Tensor) -> None:
    with pytest.raises(ValueError, match="chunk"):
        stream_nll(tiny_model("llama"), text, CacheSpec(2, 14), chunk=0)


def test_scores_of_the_plain_path_are_not_rounded_to_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (4 * torch.randn(1, 2, 30, 16, generator=generator) for _ in range(2))
    v = torch.randn(1, 2, 30, 8, generator=generator)  # another width than the keys': no fused kernel
    exact, _ = attention_with_lse(
        q.bfloat16().double(), k.bfloat16().double(), v.bfloat16().double(), None, Scores(0.25)
    )
    found, lse = attention_with_lse(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, Scores(0.25))
    assert lse.dtype == torch.float32
    assert float((found.double() - exact).abs().mean()) < 2e-3


def test_sinks_beyond_the_text_are_refused(text: Tensor) -> None:
    with pytest.raises(UserError, match=r"100\+16: keeps 100 sinks of a text of 90 tokens"):
        stream_nll(tiny_model("llama"), text, CacheSpec(100, 16))


@pytest.mark.parametrize(("interleaved", "begin"), [(False, 0), (True, 0), (False, 2)])
def test_turn_composes_and_keeps_lengths(interleaved: bool, begin: int) -> None:
    rotary = Rotary(torch.tensor([1.0, 0.1], dtype=torch.float64), interleaved, begin)
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64)  # two dimensions of six are not rotated
    there = rotary.turn(x, torch.tensor([5, 6, 7]))
    assert torch.allclose(rotary.turn(there, torch.tensor([-5, -6, -7])), x)
    still = slice(4, 6) if begin == 0 else slice(0, 2)
    rotated = slice(begin, begin + 4)
    assert torch.equal(there[..., still], x[..., still])
    assert not torch.allclose(there[..., rotated], x[..., rotated], atol=0.1)
    assert torch.allclose(there.norm(dim=-1), x.norm(dim=-1))


def test_nll_of_a_large_vocabulary_is_exact() -> None:
    """Peaked logits over 49,152 entries: the many small terms of the sum must not be lost in float32."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 150, 49_152, generator=generator) * 2
    logits[..., 7] += 14
    targets = torch.randint(0, 49_152, (2, 150), generator=generator)
    exact = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    error = token_nll(logits, targets) - exact
    assert float(error.abs().max()) < 5e-6 and abs(float(error.mean())) < 1e-6


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_attention_with_lse_against_a_written_out_softmax(heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads[0], 5, 8, generator=generator, dtype=torch.float64) * 5
    k, v = (torch.randn(2, heads[1], 600, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(5, 600, dtype=torch.float64)
    mask[:, :550] = float("-inf")  # whole blocks of a fused kernel are hidden
    mask[2, 580:] = float("-inf")
    output, lse = attention_with_lse(q, k, v, mask.repeat(heads[0] // heads[1], 1)[None, None], Scores(0.3))
    full_k, full_v = (x.repeat_interleave(heads[0] // heads[1], dim=1) for x in (k, v))
    scores = torch.einsum("bhld,bhnd->bhln", q, full_k) * 0.3 + mask
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-12)
    assert torch.allclose(output, scores.softmax(-1) @ full_v, atol=1e-12)


def test_merging_parts_of_a_softmax() -> None:
    """A softmax in two parts, and with a sink logit, against one written out."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64) * 5
    k, v = (torch.randn(2, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    logits = torch.tensor([-30.0, 0.0, 8.0, 30.0], dtype=torch.float64)
    full = k.repeat_interleave(2, dim=1)
    scores = q @ full.transpose(-1, -2)
    part, lse = attention_with_lse(q, k[:, :, 3:], v[:, :, 3:], None, Scores(1.0))
    output, lse = merge(part, lse, scores[..., :3], v[:, :, :3])
    assert torch.allclose(lse, scores.logsumexp(-1)) and not torch.allclose(output, part, atol=0.1)
    assert torch.allclose(output, scores.softmax(-1) @ v.repeat_interleave(2, dim=1))
    with_logit = torch.cat((scores, logits.view(1, 4, 1, 1).expand(2, 4, 5, 1)), dim=-1).softmax(-1)[..., :-1]
    assert torch.allclose(with_outlet(output, lse, logits[:, None], None), with_logit @ v.repeat_interleave(2, dim=1))


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
