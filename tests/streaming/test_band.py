"""The attention of training with a band, against a softmax over T x T scores in float64: output and all gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from dense_band import dense_band
from differentiated import output_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sinktrain.streaming import CacheSpec, Positions, band, blocks
from sinktrain.streaming.band import Band
from sinktrain.streaming.kernels import Scores
from sinktrain.streaming.rotary import Rotary

KINDS = [None, "zero", "logit", "kv", "k"]


class Layer(nn.Module):
    """What an attention module knows of its place and its outlet."""

    def __init__(self, kind: str | None, sinks: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer_idx = 0
        self.sink_kind = "kv" if kind == "k" else kind
        for name, x in sinks.items():
            setattr(self, name, x)


class Case:
    """A sample with large scores, and what is done to its scores."""

    def __init__(
        self, cache: tuple[int, int], *, length: int = 60, groups: int = 2, width: int = 8, value_width: int = 8,
        kind: str | None = None, rotated: int = 8, alibi: bool = False, softcap: float | None = None,
        window: int | None = None, rule: str = "cache", seed: int = 0,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        heads, self.scale, self.cache, self.kind, self.rule = 2 * groups, width**-0.5, cache, kind, rule
        self.softcap, self.window = softcap, window
        self.frequencies = random(rotated // 2).exp() if rotated else None
        self.slopes = random(heads).exp() / 20 if alibi else None
        self.inputs = {
            "query": 2 * random(2, heads, length, width),
            "key": random(2, 2, length, width),
            "value": random(2, 2, length, value_width),
        }
        if kind == "logit":
            self.inputs["sinks"] = random(heads) * 5
        if kind in ("kv", "k"):
            self.inputs["sink_key"] = random(2, width)
        if kind == "kv":
            self.inputs["sink_value"] = random(2, value_width)
        self.above = random(2, heads, length, value_width)

    def run(self, how: Any, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Tensor]:
        """The output and all gradients, float64, on the CPU."""
        return output_and_gradients(partial(how, self), self.inputs, self.above, dtype, device)


def ours(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
    rotary = None if case.frequencies is None else Rotary(case.frequencies)
    made = Band(CacheSpec(*case.cache), case.rule, Positions((rotary,), case.slopes))  # type: ignore[arg-type]
    scores = Scores(case.scale, case.softcap, case.slopes)
    return made.attend(Layer(case.kind, sinks), query, key, value, scores, window=case.window)


def written_out(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
    outlet = None if case.kind is None else (case.kind, sinks)
    return dense_band(
        query, key, value, case.cache, case.scale, rule=case.rule, frequencies=case.frequencies, slopes=case.slopes,
        softcap=case.softcap, window=case.window, outlet=outlet,
    )  # fmt: skip


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest entry of each tensor (at least 1)."""
    assert found.keys() == expected.keys() and found["output"].numel() > 0
    return max(float((found[n] - x).abs().max() / x.abs().max().clamp(min=1)) for n, x in expected.items())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 queries, so that short samples have several."""
    monkeypatch.setattr(blocks, "ROWS", 16)


@pytest.mark.parametrize("x", [0, 1, 2, 4])
@pytest.mark.parametrize("y", [1, 7, 16, 33])
@pytest.mark.parametrize("rule", ["cache", "original"])
def test_below_at_and_above_the_cache(x: int, y: int, rule: str, small_blocks: None) -> None:
    for length in sorted({x + 1, y, y + 1, y + 2, x + y, x + y + 1, x + y + 2, 70}):
        case = Case((x, y), length=length, rule=rule)
        assert distance(case.run(ours), case.run(written_out)) < 1e-12, length


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 5), y=st.integers(1, 40), length=st.integers(1, 90), groups=st.integers(1, 3),
    kind=st.sampled_from(KINDS), rotated=st.sampled_from([0, 4, 8]), alibi=st.booleans(),
    softcap=st.sampled_from([None, 3.0]), value_width=st.sampled_from([8, 5]), window=st.sampled_from([None, 1, 9, 25]),
    rule=st.sampled_from(["cache", "original"]), rows=st.sampled_from([1, 16, 128]), seed=st.integers(0, 99),
)  # fmt: skip
def test_anything(x: int, y: int, length: int, rows: int, **fields: Any) -> None:
    case = Case((x, y), length=length, **fields)
    before, blocks.ROWS = blocks.ROWS, rows
    try:
        assert distance(case.run(ours), case.run(written_out)) < 1e-11
    finally:
        blocks.ROWS = before


@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks_of_the_usual_size(kind: str | None) -> None:
    case = Case((2, 150), length=700, kind=kind)
    assert distance(case.run(ours), case.run(written_out)) < 1e-12


@pytest.mark.parametrize("kind", [None, "kv"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision(kind: str | None, dtype: torch.dtype, bound: float, small_blocks: None) -> None:
    case = Case((2, 20), length=100, kind=kind)
    assert 0 < distance(case.run(ours, dtype), case.run(written_out)) < bound


@pytest.mark.parametrize("kind", [None, "kv"])
def test_autocast_is_bfloat16_inside(kind: str | None, small_blocks: None) -> None:
    """As accurate as with inputs in bfloat16: the scores of sinks and all sums are float32."""
    case = Case((2, 20), length=100, kind=kind)

    def run(case: Case, **inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output = ours(case, **inputs)
        assert output.dtype == torch.bfloat16
        return output

    expected = case.run(written_out)
    error = distance(case.run(run, torch.float32), expected)
    assert 0 < error < 1.5 * distance(case.run(ours, torch.bfloat16), expected)


def test_the_operator_is_one_that_torch_takes(small_blocks: None) -> None:
    """Its schema, its shapes without data, its gradient under a compiler."""
    case = Case((1, 20), length=40)
    swapped = (case.inputs[name].transpose(1, 2).contiguous() for name in ("query", "key", "value"))
    query, key, value = (x.transpose(1, 2).requires_grad_() for x in swapped)  # as a model has them
    extra = torch.randn(2, 4, 40, 1, dtype=torch.float64, requires_grad=True)
    for e in (0, 1):
        inputs = (query, key, value, extra[..., :e], value[:, :, :e], None, 20, case.scale, None)
        torch.library.opcheck(blocks.band, inputs)


@pytest.mark.parametrize("kind", [None, "kv"])
def test_compiled_equals_eager(kind: str | None, small_blocks: None) -> None:
    case = Case((2, 20), length=50, kind=kind)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert distance(case.run(compiled), case.run(ours)) < 1e-12


def test_work_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of query and key that are computed: T (ROWS + y) at most, forward and backward."""
    pairs: list[int] = []
    for name in ("attention_with_lse", "_block_backward"):
        right = getattr(blocks, name)

        def counted(query: Tensor, key: Tensor, *rest: Any, right: Any = right, name: str = name) -> Any:
            n = (query, key) if name == "attention_with_lse" else (key, rest[0])
            pairs.append(n[0].shape[2] * n[1].shape[2])
            return right(query, key, *rest)

        monkeypatch.setattr(blocks, name, counted)
    for length in (1000, 4000):
        pairs.clear()
        Case((1, 100), length=length).run(ours)
        assert len(pairs) == 2 * -(-length // blocks.ROWS)
        assert length * 100 < sum(pairs) / 2 <= length * (blocks.ROWS + 100)


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_for_cuda(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without a fused kernel: its output alone, since on CPU it has no backward pass."""
    calls: list[int] = []
    right = band.fused_band
    monkeypatch.setattr(band, "can_fuse", lambda query: True)
    monkeypatch.setattr(band, "fused_band", lambda *given: (calls.append(1), right(*given))[1])
    for fields in ({}, {"softcap": 3.0}, {"alibi": True, "rotated": 0}):
        case = Case((2, 150), length=400, width=16, value_width=16, kind=kind, **fields)  # type: ignore[arg-type]
        with torch.no_grad():
            found, expected = ours(case, **case.inputs), written_out(case, **case.inputs)
        assert float((found - expected).abs().max()) < 1e-10
    assert len(calls) == 3


def test_the_blocks_for_cuda_can_be_differentiated() -> None:
    """The kernel's backward pass needs each block of keys to know its queries: those within y behind it."""
    from sinktrain.streaming.fused import BLOCK, _blocks

    mask = _blocks(20 * BLOCK, 20 * BLOCK, 4 * BLOCK, torch.device("cpu"), True)
    assert mask.q_num_blocks is not None and mask.full_q_num_blocks is not None
    both = mask.q_num_blocks[0, 0] + mask.full_q_num_blocks[0, 0]
    assert both.tolist() == [5] * 16 + [4, 3, 2, 1]
    assert _blocks(20 * BLOCK, 20 * BLOCK, 4 * BLOCK, torch.device("cpu")).q_num_blocks is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention differentiates on a GPU only")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-3), (torch.bfloat16, 0.04)])  # float32 by TF32
def test_on_a_gpu(kind: str | None, dtype: torch.dtype, bound: float) -> None:
    case = Case((2, 150), length=700, width=32, value_width=32, rotated=32, kind=kind)
    assert distance(case.run(ours, dtype, "cuda"), case.run(written_out)) < bound


def test_a_band_of_one_key_too_few_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth."""
    case = Case((2, 20))
    expected = case.run(written_out)
    monkeypatch.setattr(blocks, "in_band", lambda d, recent: (d >= 0) & (d < recent))
    found = case.run(ours)
    for name in ("output", "query", "key", "value"):
        assert float((found[name] - expected[name]).abs().max()) > 0.1, name


def test_sinks_at_their_original_distance_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth."""
    case = Case((2, 20))
    expected = case.run(written_out)
    monkeypatch.setattr(Band, "in_cache", lambda self, positions: positions)
    found = case.run(ours)
    for name in ("output", "query", "key", "value"):
        assert float((found[name] - expected[name]).abs().max()) > 0.1, name


def test_a_backward_pass_of_the_band_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: with the log-sum-exp of the band alone, gradients are wrong where outputs are right."""
    case = Case((2, 20))
    expected, right = case.run(written_out), blocks.merge
    monkeypatch.setattr(blocks, "merge", lambda output, lse, *rest: (right(output, lse, *rest)[0], lse))
    found = case.run(ours)
    assert torch.allclose(found["output"], expected["output"])
    for name in ("query", "key", "value"):
        assert float((found[name] - expected[name]).abs().max()) > 0.1, name
