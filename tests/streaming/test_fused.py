"""The GPU's path of a chunk, run on the CPU by FlexAttention's own eager form."""

from __future__ import annotations

import pytest
import torch
from family_models import FAMILIES, make, some_tokens

from sinktrain.streaming import CacheSpec, fused, reference_nll, stream_nll
from sinktrain.streaming import chunk as chunk_module
from sinktrain.streaming.fused import BLOCK, fused_band
from sinktrain.streaming.kernels import Scores


@pytest.mark.parametrize("name", ["Llama", "ALiBi: Bloom", "Gemma 2 (sliding layers, soft cap)"])
def test_a_stream_through_the_fused_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, spec = make(FAMILIES[name]), some_tokens(400), CacheSpec(2, 150)
    reference = reference_nll(model, tokens, spec)
    stream_nll(model, tokens[:9], spec)  # makes the model ready
    calls: list[int] = []
    right = fused.fused_band
    monkeypatch.setattr(chunk_module, "can_fuse", lambda query: True)
    monkeypatch.setattr(chunk_module, "fused_band", lambda *given: (calls.append(1), right(*given))[1])
    found = stream_nll(model, tokens, spec, chunk=170)
    assert len(calls) == 3 * 4  # chunks, layers
    assert float((found - reference).abs().max()) < 1e-5


@pytest.mark.parametrize("length", [1, 5, 128, 300])
@pytest.mark.parametrize("carried", [0, 7, 256, 300])
@pytest.mark.parametrize("recent", [None, 1, 130, 300])
def test_band_against_a_softmax_written_out(length: int, carried: int, recent: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, length, 16, generator=generator)
    k, v = (torch.randn(1, 2, carried + length, 16, generator=generator) for _ in range(2))
    output, lse = fused_band(q, k, v, recent, Scores(0.7))
    distance = carried + torch.arange(length)[:, None] - torch.arange(carried + length)
    seen = (distance >= 0) & (distance <= (10_000 if recent is None else recent))
    scores = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.7).masked_fill(~seen, float("-inf"))
    assert torch.allclose(output, scores.softmax(-1) @ v.repeat_interleave(2, 1), atol=1e-5)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)


def test_blocks_outside_the_band_are_not_touched() -> None:
    """What the kernel does is proportional to y, whatever the length: y / BLOCK blocks, and one at each end."""
    mask = fused._blocks(100 * BLOCK, 104 * BLOCK, 4 * BLOCK, torch.device("cpu"))
    partial, whole = mask.kv_num_blocks[0, 0], mask.full_kv_num_blocks[0, 0]
    assert partial.max() == 2 and whole.min() == whole.max() == 3
