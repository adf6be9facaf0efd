"""The chunked loss against cross entropy written out in float64, its gradients, its memory, and the heads it knows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sinktrain.base.models import model_from_config
from sinktrain.training import chunked as module
from sinktrain.training.heads import has_plain_head
from sinktrain.training.loss import logits_loss, next_token_loss

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def written_out(hidden, weight, bias, labels, z_loss) -> tuple:
    """The objective, the NLL and the gradients, in float64 and in one piece."""
    leaves = [None if x is None else x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    logits = leaves[0][:, :-1] @ leaves[1].T
    if bias is not None:
        logits = logits + leaves[2]
    targets = labels[:, 1:]
    valid = targets != -100
    log_z = torch.log(torch.exp(logits).sum(-1))
    nll = ((log_z - logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]) * valid).sum()
    objective = nll + z_loss * (log_z**2 * valid).sum()
    return objective, nll, torch.autograd.grad(objective, [x for x in leaves if x is not None])


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 6), st.integers(2, 40)),
    chunk=st.integers(1, 200),
    with_bias=st.booleans(),
    z_loss=st.sampled_from([0.0, 1e-2]),
    seed=st.integers(0, 9999),
)
def test_equals_cross_entropy_written_out(shape, chunk, with_bias, z_loss, seed) -> None:
    batch, length, width, vocabulary = shape
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, width, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(width, vocabulary, bias=with_bias, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(3 * torch.randn(vocabulary, width, generator=generator))
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator)
    labels[torch.rand(batch, length, generator=generator) < 0.3] = -100
    expected, expected_nll, gradients = written_out(hidden, head.weight, head.bias, labels, z_loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        objective, nll, tokens = next_token_loss(hidden, head, labels, z_loss)
    (0.5 * objective).backward()
    assert tokens == (labels[:, 1:] != -100).sum()
    assert objective.requires_grad and not nll.requires_grad  # else the step keeps a copy of every gradient
    torch.testing.assert_close(objective, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(nll, expected_nll, rtol=1e-9, atol=1e-9)
    found = [hidden.grad, head.weight.grad] + ([head.bias.grad] if with_bias else [])
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, 0.5 * theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bf16_autocast_is_as_exact_as_torch(compiled, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1000)
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 33, 32, requires_grad=True), torch.nn.Linear(32, 257, bias=False)
    labels = torch.randint(0, 257, (2, 33))
    with torch.autocast("cpu", torch.bfloat16):
        objective, nll, _ = next_token_loss(hidden, head, labels, compiled=compiled)
        plain = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")
    exact, _, (d_hidden, d_weight) = written_out(hidden, head.weight, None, labels, 0.0)
    ours = torch.autograd.grad(objective, (hidden, head.weight))
    theirs = torch.autograd.grad(plain, (hidden, head.weight))
    assert objective.dtype == torch.float32
    assert nll == objective
    assert abs(objective - exact) < max(2 * abs(plain - exact), 1e-4 * exact)
    for a, b, true in zip(ours, theirs, (d_hidden, d_weight), strict=True):
        assert (a - true).norm() < 1.5 * (b - true).norm()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_of_the_batch_are_never_held(monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 4 * 4096)
    hidden, head = torch.randn(4, 65, 8, requires_grad=True), torch.nn.Linear(8, 4096, bias=False)
    labels = torch.randint(0, 4096, (4, 65))
    with Largest() as largest:
        next_token_loss(hidden, head, labels)[0].backward()
    assert largest.elements == head.weight.numel()  # its gradient; the logits would be 32 times that
    with Largest() as largest:
        logits_loss(head(hidden), labels)[0].backward()
    assert largest.elements >= 4 * 64 * 4096


def test_a_frozen_head_and_validation_make_no_gradient() -> None:
    hidden, head = torch.randn(1, 5, 4, requires_grad=True), torch.nn.Linear(4, 9, bias=False).requires_grad_(False)
    labels = torch.randint(0, 9, (1, 5))
    next_token_loss(hidden, head, labels)[0].backward()
    assert head.weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not next_token_loss(hidden, head, labels)[0].requires_grad


PLAIN = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("gpt_neox", {}),
    ("gpt2", {"n_embd": 32, "n_head": 4}),
]
SCALED = [("gemma2", {"head_dim": 8, "final_logit_softcapping": 1.0}),
          ("gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}), ("cohere", {"logit_scale": 0.25}),
          ("granite", {"logits_scaling": 4.0})]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "extra", "plain"), [(*case, True) for case in PLAIN] + [(*case, False) for case in SCALED]
)
def test_heads_that_scale_their_logits_are_seen(kind, extra, plain) -> None:
    model = model_from_config({"model_type": kind, **LLAMA, **extra}, 64)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert has_plain_head(model) is plain
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training is False or model.training is True


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_loss_of_logits_agrees(z_loss) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 7, 8), torch.nn.Linear(8, 30)
    labels = torch.randint(0, 30, (2, 7))
    labels[:, :3] = -100
    for ours, theirs in zip(
        next_token_loss(hidden, head, labels, z_loss), logits_loss(head(hidden), labels, z_loss), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
