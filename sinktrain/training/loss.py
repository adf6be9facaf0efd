"""The loss of the next token from hidden states, without ever holding the logits of the whole batch.

`F.linear_cross_entropy` does the same from torch 2.13 on, but it adds the losses up in the dtype of the logits, has no
z-loss and is slower on a CPU: `scripts/bench_loss.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sinktrain.data.packing import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**25
"""Logits that are held at once: 128 MiB in float32, enough rows for the matrix units at any usual vocabulary."""


def next_token_loss(
    hidden: Tensor, head: nn.Module, labels: Tensor, z_loss: float = 0.0, compiled: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """What the model is trained on, the NLL and the number of targets, summed over a batch.

    The objective of a position is -log p(target) + z_loss * log(Z)^2, with Z the sum of the exponentials of its logits
    (z-loss: PaLM, arXiv 2204.02311, section 5). The gradient of the logits is made with the loss, chunk by chunk, so
    that the backward pass neither holds nor recomputes them. Sums are taken in float32.

    Args:
        hidden: (B, T, D) the last hidden states.
        head: its `weight` (V, D) and `bias` (V) or None turn hidden states into logits.
        labels: (B, T) ids; position t predicts `labels[:, t + 1]`, and -100 is no target.
        z_loss: the factor above; 0 for none.
        compiled: fuse the passes over a chunk of logits with `torch.compile`.

    Returns:
        The objective, with a gradient; the NLL in nats, without; the number of targets. All three are sums.
    """
    targets = labels[:, 1:].flatten()
    states = hidden[:, :-1].flatten(0, 1)
    bias, wanted = getattr(head, "bias", None), torch.is_grad_enabled()
    apply: Any = _ChunkedLoss.apply  # torch leaves it untyped
    objective, nll = apply(states, head.weight, bias, targets, z_loss, compiled, wanted)
    return objective, nll, (targets != IGNORED).sum()


def logits_loss(logits: Tensor, labels: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """`next_token_loss` from logits (B, T, V), for a model that does more to them than its head."""
    scores, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    nll = F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
    objective = nll
    if z_loss:
        objective = nll + z_loss * (scores.logsumexp(-1).square() * (targets != IGNORED)).sum()
    return objective, nll.detach(), (targets != IGNORED).sum()


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its head applied to its last hidden states and nothing else.

    Some architectures scale or cap them (Cohere, Gemma 2, Granite). Their configs name that in as many ways, so two
    tokens are put through the model instead, with a head so large that a cap shows.
    """
    head: Any = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor):
        return False
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.arange(2, device=head.weight.device)[None]
        before = head.weight.detach().clone()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        head.weight.mul_(100 / F.linear(hidden, head.weight).abs().max().clamp(min=1e-6))
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # a tied embedding has grown too
        logits = model(input_ids=ids, use_cache=False).logits
        same = torch.allclose(F.linear(hidden, head.weight, getattr(head, "bias", None)), logits, rtol=1e-4, atol=1e-3)
        head.weight.copy_(before)
    model.train(was_training)
    return same


class _ChunkedLoss(torch.autograd.Function):
    """States (N, D), weight (V, D), bias (V) or None, targets (N) to the objective and the NLL."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        compiled: bool,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        x, w, b = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        needs = [wanted and need for need in ctx.needs_input_grad[:3]]
        d_states = torch.empty_like(x) if needs[0] else None
        d_weight = torch.zeros_like(weight) if needs[1] else None
        d_bias = torch.zeros_like(weight[:, 0]) if bias is not None and needs[2] else None
        step = _compiled() if compiled else _nll_and_gradient
        sums = torch.zeros(2, device=states.device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        with torch.autocast(device, enabled=False):
            rows = max(1, CHUNK_ELEMENTS // len(weight))
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                added, d_logits = step(F.linear(x[part], w, b), targets[part], z_loss, any(needs))
                sums += added
                if d_states is not None:
                    torch.mm(d_logits, w, out=d_states[part])
                if d_weight is not None:
                    d_weight += d_logits.T @ x[part]
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=d_bias.dtype)
        ctx.save_for_backward(d_states, d_weight, d_bias)
        ctx.dtype = states.dtype
        objective, nll = (total.clone() for total in sums.unbind())
        ctx.mark_non_differentiable(nll)  # the very tensor that is returned, or gradients of gradients are kept
        return objective, nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_weight, d_bias = (None if made is None else made * gradients[0] for made in ctx.saved_tensors)
        return None if d_states is None else d_states.to(ctx.dtype), d_weight, d_bias, None, None, None, None


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
