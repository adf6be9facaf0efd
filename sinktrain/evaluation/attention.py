"""How much attention goes to the first position: by layer and head, and Gu et al.'s sink metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import Subject
from sinktrain.evaluation.texts import Text
from sinktrain.sinks.outlet import has_outlet
from sinktrain.streaming.attach import attention_implementation
from sinktrain.streaming.observe import attention_columns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

THRESHOLD = 0.3
"""A head has a sink when it puts more than this on the position (Gu et al., arXiv 2410.10781, section 3.2)."""


@torch.no_grad()
def attention_to_first(subject: Subject, text: Text, *, length: int = 64, sequences: int = 16) -> dict[str, Any] | None:
    """The attention on position 0 of short sequences cut from the text, a model's sinks in front of each.

    alpha_0 of a head is the mean over the queries i >= 1 of the attention from i to position 0, averaged over the
    sequences; the sink metric is the share of heads with alpha_0 > 0.3 (query 0 is left out: it can see nothing else).

    Args:
        subject: the model.
        text: where the sequences come from, evenly spread.
        length: positions a sequence, sinks included.
        sequences: how many.

    Returns:
        `share` ([layer][head]), `sink_metric`, `length`, `sequences`, and where the softmax has an outlet (sink kinds
        `zero`, `logit`, `kv`) its share by `outlet`; None if the text is shorter than a sequence.
    """
    sequences = min(sequences, len(text.tokens) // (length - len(subject.sink_ids)))
    if sequences == 0:
        return None
    rows = cut(subject, text, length, sequences)
    share, outlet = _shares(subject.model, rows)
    if not bool(share.isfinite().all()):
        raise UserError(
            f"model.name {subject.options.name}: its attention is not finite; use --model.dtype float32, or "
            "--attention false."
        )
    return {
        "share": _rounded(share),
        **({} if outlet is None else {"outlet": _rounded(outlet)}),
        "sink_metric": float((share > THRESHOLD).float().mean()),
        "length": length,
        "sequences": sequences,
    }


def cut(subject: Subject, text: Text, length: int, sequences: int) -> Tensor:
    """(sequences, length) token ids on the model's device: the model's sinks, then pieces of text, evenly spread."""
    sinks = torch.tensor(subject.sink_ids, dtype=torch.long)
    width = length - len(sinks)
    starts = torch.linspace(0, len(text.tokens) - width, sequences).long().tolist()
    rows = torch.stack([torch.cat((sinks, text.tokens[s : s + width])) for s in starts])
    return rows.to(subject.model.device)


def sink_share(alpha: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Sink_k of Gu et al. (arXiv 2410.10781, section 3.2).

    For a sequence of T positions, counted from 1, and a head whose attention is A, they define

        alpha_k = 1 / (T - k + 1) sum over i = k ... T of A[i, k],

    the mean over all queries that can see position k, query k itself among them. Sink_k is the share of all heads of
    all layers whose alpha_k is above the threshold, in one sequence; then the mean over sequences.

    Args:
        alpha: (S, layers, H, P) of S sequences, as `attention_columns` gives it with `after=0`. Its position 0 is the
            paper's k = 1.
        threshold: the paper's epsilon.

    Returns:
        (P,) float64.
    """
    return (alpha > threshold).double().mean(dim=(0, 1, 2))


def _shares(model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The attention (layers, heads) on position 0 and on the outlet, averaged over `rows` (B, T)."""
    if any(has_outlet(module) or isinstance(getattr(module, "sinks", None), Tensor) for module in model.modules()):
        alpha, outlet = attention_columns(model, rows, [0], after=1)  # eager weights may leave the outlet out
        assert outlet is not None
        return alpha[..., 0].mean(dim=0), outlet.mean(dim=0)
    with attention_implementation(model, "eager"):
        layers = model(input_ids=rows, use_cache=False, output_attentions=True).attentions
    return torch.stack([_to_first(weights) for weights in layers]), None


def _rounded(share: Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in layer] for layer in share.tolist()]


def _to_first(weights: Tensor) -> Tensor:
    """(B, H, T, T) attention probabilities to the mean (H,) over B and the queries 1 ... T-1 of that on position 0."""
    return weights[:, :, 1:, 0].float().mean(dim=(0, 2))
