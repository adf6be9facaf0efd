"""Attention with an outlet against a softmax written out in float64: the output and all gradients."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from differentiated import output_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from sinktrain.sinks import attention
from sinktrain.sinks.attention import sink_attention

KINDS = ["zero", "logit", "kv", "k"]


class Outlet(nn.Module):
    """What an attention module knows of its outlet."""

    def __init__(self, kind: str, sinks: dict[str, Tensor]) -> None:
        super().__init__()
        self.sink_kind = "kv" if kind == "k" else kind
        for name, x in sinks.items():
            setattr(self, name, x)


class Case:
    """An attention module with an outlet and large scores, and what goes through it."""

    def __init__(
        self, kind: str, *, groups: int = 2, length: int = 9, width: int = 8, loud: float = 1.0, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.heads, self.length, self.scale, self.kind = 2 * groups, length, width**-0.5, kind
        self.inputs = {
            "query": random(2, self.heads, length, width) * loud,
            "key": random(2, 2, length, width) * loud,
            "value": random(2, 2, length, width),
        }
        if kind == "logit":
            self.inputs["sinks"] = random(self.heads) * 10
        if kind in ("kv", "k"):
            self.inputs["sink_key"] = random(2, width) * loud
        if kind == "kv":
            self.inputs["sink_value"] = random(2, width)
        self.above = random(2, length, self.heads, width)

    def run(self, how: Any, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Tensor]:
        """The output and all gradients, float64, on the CPU."""
        return output_and_gradients(partial(how, self), self.inputs, self.above, dtype, device)


def ours(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
    return ours_with()(case, query, key, value, **sinks)


def ours_with(mask: Any = None, **options: Any) -> Any:
    def run(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
        module = Outlet(case.kind, sinks)
        return sink_attention(module, query, key, value, mask, scaling=case.scale, **options)[0]

    return run


def written_out(seen: Tensor | None = None, softcap: float | None = None) -> Any:
    """The definition: a softmax over the outlet and the keys that are seen, head by head and query by query."""

    def run(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
        groups, rows = case.heads // 2, []
        for b in range(len(query)):
            for h in range(case.heads):
                for i in range(case.length):
                    kept = [j for j in range(i + 1) if seen is None or bool(seen[b % len(seen), i, j])]
                    q, head = query[b, h, i], h // groups
                    scores = key[b, head, kept] @ q * case.scale
                    if softcap is not None:
                        scores = softcap * torch.tanh(scores / softcap)
                    outlet = q.new_zeros(())
                    if case.kind == "logit":
                        outlet = sinks["sinks"][h]
                    if case.kind in ("kv", "k"):
                        outlet = sinks["sink_key"][head] @ q * case.scale
                    weights = torch.cat((outlet[None], scores)).softmax(dim=0)
                    own = sinks["sink_value"][head] if case.kind == "kv" else torch.zeros_like(q)
                    rows.append(weights @ torch.cat((own[None], value[b, head, kept])))
        return torch.stack(rows).view(len(query), case.heads, case.length, -1).transpose(1, 2)

    return run


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float, faint: bool = False) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert faint or float(x.abs().max()) > 1e-6, f"{name} is nothing but zero"
        assert float((found[name] - x).abs().max()) <= bound * float(x.abs().max().clamp(min=1)), name


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    groups=st.integers(1, 3), length=st.integers(2, 12), width=st.sampled_from([4, 8, 24]),
    loud=st.sampled_from([0.3, 1.0, 4.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_the_definition(kind: str, groups: int, length: int, width: int, loud: float, seed: int) -> None:
    """With scores and logits of up to 100: one of 0 would be lost in rounding, and one of -40 has hardly a gradient."""
    case = Case(kind, groups=groups, length=length, width=width, loud=loud, seed=seed)
    assert_same(case.run(ours), case.run(written_out()), 1e-10, faint=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.04)])
def test_lower_precision(kind: str, dtype: torch.dtype, bound: float) -> None:
    """bfloat16 has 8 bits: the inputs alone are rounded by 0.4%."""
    case = Case(kind, length=40, loud=1.5)
    assert_same(case.run(ours, dtype), case.run(written_out()), bound)


@pytest.mark.parametrize("kind", KINDS)
def test_the_blockwise_kernel_and_many_blocks(kind: str) -> None:
    """Longer than a block of the kernel, with a length that divides by nothing."""
    case = Case(kind, length=131, width=16)
    assert_same(case.run(ours, torch.float32), case.run(written_out()), 2e-5)


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2, 3]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["bool", "added"])
def test_documents_do_not_see_each_other(kind: str, form: str) -> None:
    seen = (DOCUMENTS[:, :, None] == DOCUMENTS[:, None]) & torch.ones(9, 9, dtype=torch.bool).tril()
    mask = seen[:, None] if form == "bool" else torch.zeros(2, 1, 9, 9).masked_fill(~seen[:, None], -math.inf)
    case = Case(kind)
    expected = case.run(written_out(seen))
    assert_same(case.run(ours_with(mask)), expected, 1e-10)
    assert float((expected["output"] - case.run(written_out())["output"]).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_softcaps(kind: str) -> None:
    distance = torch.arange(9)[:, None] - torch.arange(9)
    seen = ((distance >= 0) & (distance < 3))[None]
    case = Case(kind, loud=2.0)
    assert_same(case.run(ours_with(sliding_window=3)), case.run(written_out(seen)), 1e-10)
    assert_same(case.run(ours_with(softcap=1.5)), case.run(written_out(softcap=1.5)), 1e-10)
    assert_same(case.run(ours_with(softcap=1.5, sliding_window=3)), case.run(written_out(seen, 1.5)), 1e-10)
    whole = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    assert_same(case.run(ours_with(whole, sliding_window=3)), case.run(written_out(seen)), 1e-10)
    assert_same(case.run(ours_with(sliding_window=9)), case.run(written_out()), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_sees_all_keys(kind: str) -> None:
    """The last query alone, over the keys of a cache, is the last of all."""
    case = Case(kind)
    whole = case.run(ours)["output"]

    def last(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
        return ours_with()(case, query[:, :, -1:], key, value, **sinks)

    case.above = case.above[:, -1:]
    assert torch.allclose(case.run(last)["output"], whole[:, -1:], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_outlets_gradient_is_that_of_differences(kind: str) -> None:
    case = Case(kind, length=5, width=4)
    names = list(case.inputs)
    leaves = [x.clone().requires_grad_() for x in case.inputs.values()]
    assert torch.autograd.gradcheck(lambda *x: ours(case, **dict(zip(names, x, strict=True))), leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_bfloat16_inside(kind: str) -> None:
    case = Case(kind, length=30)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = case.run(ours, torch.float32)
    assert_same(mixed, case.run(written_out()), 0.04)
    assert float((mixed["output"] - case.run(ours)["output"]).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(kind: str) -> None:
    case = Case(kind)
    compiled = torch.compile(sink_attention, backend="aot_eager", fullgraph=True)

    def run(case: Case, query: Tensor, key: Tensor, value: Tensor, **sinks: Tensor) -> Tensor:
        return compiled(Outlet(case.kind, sinks), query, key, value, None, scaling=case.scale)[0]

    assert_same(case.run(run), case.run(ours), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_for_cuda(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without a fused kernel: its output alone, since on CPU it has no backward pass."""
    case = Case(kind, length=32, width=16)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: attention.flex_attention)
    for window in (None, 5):
        blocks = attention.causal_blocks(32, window, torch.device("cpu"))
        with torch.no_grad():
            found = ours_with(blocks)(case, **case.inputs)
            expected = ours_with(sliding_window=window)(case, **case.inputs)
        assert float((found - expected).abs().max()) < 1e-10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention differentiates on a GPU only")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-3), (torch.bfloat16, 0.04)])  # float32 by TF32
def test_on_a_gpu(kind: str, dtype: torch.dtype, bound: float) -> None:
    case = Case(kind, length=150, width=32)
    assert_same(case.run(ours, dtype, "cuda"), case.run(ours), bound)
    assert_same(case.run(ours_with(sliding_window=40), dtype, "cuda"), case.run(ours_with(sliding_window=40)), bound)
    documents = (torch.arange(150) // 37).cuda()
    blocks = create_block_mask(
        lambda b, h, i, j: (documents[i] == documents[j]) & (i >= j), None, None, 150, 150, "cuda"
    )
    seen = (documents[:, None] == documents) & torch.ones(150, 150, dtype=torch.bool, device="cuda").tril()
    assert_same(case.run(ours_with(blocks), dtype, "cuda"), case.run(ours_with(seen[None, None].cpu())), bound)


def test_a_broken_backward_pass_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: with the log-sum-exp of the text alone, gradients are wrong where outputs are right."""
    case = Case("logit")
    expected = case.run(written_out())
    monkeypatch.setattr(torch, "logaddexp", lambda a, b: a + 0 * b)
    found = case.run(ours)
    assert torch.allclose(found["output"], expected["output"])
    assert not torch.allclose(found["key"], expected["key"], atol=1e-2)
