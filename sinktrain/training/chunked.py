"""What a model is trained towards, and its loss and gradient from hidden states, a chunk of logits at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sinktrain.data.packing import IGNORED

CHUNK_ELEMENTS = 2**25
"""Logits that are held at once: 128 MiB in float32, enough rows for the matrix units at any usual vocabulary."""


@dataclass(frozen=True)
class Wanted:
    """What a position is trained towards: the token that comes, and besides what another model expects.

    The objective of a position is (1 - share) NLL + share KL(other || own): next-token distillation (Hinton et al.,
    arXiv 1503.02531, at temperature 1). Where the other model says nothing, it is (1 - share) NLL.

    Args:
        z_loss: how much of log(Z)^2 is added, with Z the sum of the exponentials of the logits (z-loss: PaLM,
            arXiv 2204.02311, section 5); 0 for none.
        share: of the KL divergence, from 0 to 1.
        other: what gives the other model's expectations: its last hidden states (B, T, D), or its logits (B, T, V) for
            `logits_loss`; None for none.
        head: the other model's, of hidden states.
        known: the tokens that it expects anything of: the first so many of the vocabulary.
        speaks: (B, T) where it says something; None for everywhere.
    """

    z_loss: float = 0.0
    share: float = 0.0
    other: Tensor | None = None
    head: Any = None
    known: int | None = None
    speaks: Tensor | None = None

    def spoken(self, valid: Tensor, part: slice = slice(None)) -> Tensor:
        """Which of the `valid` positions, those in `part` of all, the other model says something at."""
        return valid if self.speaks is None else valid & self.speaks[part]


@dataclass(frozen=True)
class HeadRows:
    """Rows of a head that are trained while the rest of it is not: `rows` (k, D), equal to the head's at `ids`."""

    ids: Sequence[int]
    rows: Tensor


@dataclass(frozen=True)
class Plan:
    """What a chunked loss is told beside tensors that may have a gradient; everything by position, (N, ...)."""

    targets: Tensor
    wanted: Wanted
    own_rows: HeadRows | None
    compiled: bool
    gradients: bool


class ChunkedLoss(torch.autograd.Function):
    """States (N, D), weight (V, D), bias (V) or None, rows (k, D) or None, and the plan, to the objective and NLL."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        x, w, b = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        needs = [plan.gradients and need for need in ctx.needs_input_grad[:4]]
        d_states = torch.empty_like(x) if needs[0] else None
        d_weight = torch.zeros_like(weight) if needs[1] else None
        d_bias = torch.zeros_like(weight[:, 0]) if bias is not None and needs[2] else None
        d_rows = torch.zeros_like(rows) if rows is not None and needs[3] else None
        step = _compiled() if plan.compiled else _nll_and_gradient
        sums = torch.zeros(2, device=states.device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        with torch.autocast(device, enabled=False):
            count = max(1, CHUNK_ELEMENTS // len(weight))
            for start in range(0, len(x), count):
                part = slice(start, start + count)
                logits, targets = F.linear(x[part], w, b), plan.targets[part]
                if plan.wanted.other is None:
                    added, d_logits = step(logits, targets, plan.wanted.z_loss, any(needs))
                else:
                    added, d_logits = _distilled(logits, targets, plan.wanted, part, any(needs))
                sums += added
                if d_states is not None:
                    torch.mm(d_logits, w, out=d_states[part])
                if d_weight is not None:
                    d_weight += d_logits.T @ x[part]
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=d_bias.dtype)
                if d_rows is not None:
                    d_rows += (d_logits[:, list(plan.own_rows.ids)].T @ x[part]).to(d_rows.dtype)  # type: ignore[union-attr]
        ctx.save_for_backward(d_states, d_weight, d_bias, d_rows)
        ctx.dtype = states.dtype
        objective, nll = (total.clone() for total in sums.unbind())
        ctx.mark_non_differentiable(nll)  # the very tensor that is returned, or gradients of gradients are kept
        return objective, nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_states, *others = (None if made is None else made * gradients[0] for made in ctx.saved_tensors)
        return None if d_states is None else d_states.to(ctx.dtype), *others, None


def _distilled(logits: Tensor, targets: Tensor, wanted: Wanted, part: slice, gradients: bool) -> tuple[Tensor, Tensor]:
    """`_nll_and_gradient` with another model's expectations: its states of the positions in `part`."""
    assert wanted.other is not None
    width = min(len(wanted.head.weight), wanted.known or logits.shape[1])  # a tokenizer may have more than its model
    known, bias = slice(width), getattr(wanted.head, "bias", None)
    theirs = F.linear(
        wanted.other[part].to(logits.dtype),
        wanted.head.weight[known].to(logits.dtype),
        None if bias is None else bias[known].to(logits.dtype),
    )
    scores = logits if logits.dtype == torch.float64 else logits.float()
    expected = (theirs if theirs.dtype == torch.float64 else theirs.float()).log_softmax(-1)
    valid = targets != IGNORED
    spoken = wanted.spoken(valid, part)
    chosen = targets.clamp(min=0)[:, None]
    log_z = scores.logsumexp(1)
    nll = ((log_z - scores.gather(1, chosen)[:, 0]) * valid).sum()
    chance = expected.exp()
    divergence = (((expected - scores[:, known]) * chance).sum(1) + log_z) * spoken  # chances add up to 1
    sums = torch.stack(((1 - wanted.share) * nll + wanted.share * divergence.sum(), nll))
    if not gradients:
        return sums, logits
    # Of each part: softmax minus what was wanted.
    weight = (1 - wanted.share) * valid + wanted.share * spoken
    gradient = scores.sub_(log_z[:, None]).exp_().mul_(weight.to(scores.dtype)[:, None])
    gradient[:, known] -= chance * (wanted.share * spoken.to(scores.dtype))[:, None]
    gradient.scatter_add_(1, chosen, -((1 - wanted.share) * valid.to(scores.dtype))[:, None])
    return sums, gradient.to(logits.dtype)


def _nll_and_gradient(logits: Tensor, targets: Tensor, z_loss: float, wanted: bool) -> tuple[Tensor, Tensor]:
    """The summed objective and NLL (2,) of logits (n, V), and the gradient (n, V) of the objective."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    valid = targets != IGNORED
    chosen = targets.clamp(min=0)[:, None]
    log_z = scores.logsumexp(1)
    nll = ((log_z - scores.gather(1, chosen)[:, 0]) * valid).sum()
    objective = nll + z_loss * (log_z.square() * valid).sum() if z_loss else nll
    sums = torch.stack((objective, nll))
    if not wanted:
        return sums, logits
    # d nll / d logits = softmax - one-hot; d log_z^2 / d logits = 2 log_z softmax
    weight = (1 + 2 * z_loss * log_z) * valid
    hit = valid[:, None].to(scores.dtype)
    if torch.compiler.is_compiling():  # one pass, where a scatter would be a second
        is_target = torch.arange(scores.shape[1], device=scores.device) == chosen
        gradient = (scores - log_z[:, None]).exp() * weight[:, None] - is_target * hit
    else:
        gradient = scores.sub_(log_z[:, None]).exp_().mul_(weight[:, None]).scatter_add_(1, chosen, -hit)
    return sums, gradient.to(logits.dtype)


_cache: list[Callable[..., tuple[Tensor, Tensor]]] = []


def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    if not _cache:
        _cache.append(torch.compile(_nll_and_gradient, dynamic=False))
    return _cache[0]
