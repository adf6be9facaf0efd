"""The loss of the next token from hidden states, without ever holding the logits of the whole batch.

`F.linear_cross_entropy` does the same from torch 2.13 on, but it adds the losses up in the dtype of the logits, has no
z-loss and is slower on a CPU: `scripts/bench_loss.py` compares the two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sinktrain.data.packing import IGNORED
from sinktrain.training.chunked import ChunkedLoss, HeadRows, Plan, Wanted


def next_token_loss(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    z_loss: float = 0.0,
    compiled: bool = False,
    *,
    wanted: Wanted | None = None,
    own_rows: HeadRows | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the model is trained on, the NLL and the number of targets, summed over a batch.

    The gradient of the logits is made with the loss, chunk by chunk, so that the backward pass neither holds nor
    recomputes them. Sums are taken in float32.

    Args:
        hidden: (B, T, D) the last hidden states.
        head: its `weight` (V, D) and `bias` (V) or None turn hidden states into logits.
        labels: (B, T) ids; position t predicts `labels[:, t + 1]`, and -100 is no target.
        z_loss: as in `Wanted`.
        compiled: fuse the passes over a chunk of logits with `torch.compile`; not with another model's expectations.
        wanted: instead of `z_loss`, all of what is trained towards.
        own_rows: of a head whose weight is not trained; they get their gradient.

    Returns:
        The objective, with a gradient; the NLL in nats, without; the number of targets. All three are sums.
    """
    wanted = wanted or Wanted(z_loss)
    targets = labels[:, 1:].flatten()
    states = hidden[:, :-1].flatten(0, 1)
    bias, rows = getattr(head, "bias", None), own_rows.rows if own_rows is not None else None
    plan = Plan(targets, _shifted(wanted), own_rows, compiled, torch.is_grad_enabled())
    apply: Any = ChunkedLoss.apply  # torch leaves it untyped
    objective, nll = apply(states, head.weight, bias, rows, plan)
    return objective, nll, (targets != IGNORED).sum()


def _shifted(wanted: Wanted) -> Wanted:
    """What the positions that predict something are trained towards: (N, ...) instead of (B, T, ...)."""
    if wanted.other is None:
        return wanted
    speaks = None if wanted.speaks is None else wanted.speaks[:, :-1].flatten()
    return replace(wanted, other=wanted.other[:, :-1].flatten(0, 1), speaks=speaks)


def logits_loss(
    logits: Tensor, labels: Tensor, z_loss: float = 0.0, *, wanted: Wanted | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`next_token_loss` from logits (B, T, V), for a model that does more to them than its head."""
    wanted = _shifted(wanted or Wanted(z_loss))
    scores, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    valid = targets != IGNORED
    nll = F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
    objective = nll
    if wanted.z_loss:
        objective = nll + wanted.z_loss * (scores.logsumexp(-1).square() * valid).sum()
    if wanted.other is not None:
        expected = wanted.other[:, : wanted.known].float().log_softmax(-1)
        found = scores.log_softmax(-1)[:, : expected.shape[1]]
        divergence = (expected.exp() * (expected - found)).sum(-1) * wanted.spoken(valid)
        objective = (1 - wanted.share) * objective + wanted.share * divergence.sum()
    return objective, nll.detach(), valid.sum()
