"""Massive activations, and the norms of what stands at the sink.

Sun et al. (arXiv 2402.17762, section 2): an activation is massive if its magnitude is above 100 and about 1,000 times
the median magnitude of its hidden state, or more. Hidden states are what each layer gives, without the norm after the
last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinktrain.base.errors import UserError

MASSIVE, TIMES_MEDIAN = 100.0, 1000.0


class Hidden:
    """Keeps, of the hidden state (B, T, width) that each layer gives, what is said of it here."""

    def __init__(self) -> None:
        self._largest: list[Tensor] = []
        self._median: list[Tensor] = []
        self._place: list[Tensor] = []
        self._norms: list[Tensor] = []

    @contextmanager
    def at_work(self, model: PreTrainedModel) -> Iterator[None]:
        """Forward passes inside the block are looked at.

        Raises:
            UserError: the layers of the model cannot be told.
        """
        hooks = [layer.register_forward_hook(self._note) for layer in _layers(model)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        largest, place = hidden.abs().flatten(1).max(dim=1)
        self._largest.append(largest)
        self._median.append(hidden.abs().flatten(1).median(dim=1).values)
        self._place.append(torch.stack((place // hidden.shape[2], place % hidden.shape[2]), dim=-1))
        self._norms.append(hidden.norm(dim=-1))

    @property
    def largest(self) -> Tensor:
        """(B, layers) the largest magnitude in the hidden state of a text."""
        return torch.stack(self._largest, dim=1)

    @property
    def median(self) -> Tensor:
        """(B, layers) the median magnitude."""
        return torch.stack(self._median, dim=1)

    @property
    def place(self) -> Tensor:
        """(B, layers, 2) position and dimension of the largest."""
        return torch.stack(self._place, dim=1)

    @property
    def norms(self) -> Tensor:
        """(B, layers, T) Euclidean norms."""
        return torch.stack(self._norms, dim=1)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    count = int(model.config.get_text_config().num_hidden_layers)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"model.name: {type(model).__name__} has no list of {count} layers; name another model.")


def massive(largest: Tensor, median: Tensor, place: Tensor) -> dict[str, Any]:
    """The largest activations by layer.

    Args:
        largest: (S, layers), of S sequences.
        median: (S, layers).
        place: (S, layers, 2) of the largest.

    Returns:
        Lists by layer: `largest`, `median`, `ratio` (means over the sequences), `position` and `dimension` (where it
        stands most often), `there` (the share of sequences in which it stands there), `massive` (the share in which it
        is, by the definition above).
    """
    ratio = largest / median
    common = [_most_common(layer) for layer in place.unbind(dim=1)]
    there = [(layer == where).all(dim=-1) for layer, where in zip(place.unbind(dim=1), common, strict=True)]
    return {
        "largest": largest.mean(dim=0).tolist(),
        "median": median.mean(dim=0).tolist(),
        "ratio": ratio.mean(dim=0).tolist(),
        "position": [int(where[0]) for where in common],
        "dimension": [int(where[1]) for where in common],
        "there": [float(each.double().mean()) for each in there],
        "massive": ((largest > MASSIVE) & (ratio >= TIMES_MEDIAN)).double().mean(dim=0).tolist(),
    }


def _most_common(places: Tensor) -> Tensor:
    found, counts = places.unique(dim=0, return_counts=True)
    common: Tensor = found[counts.argmax()]
    return common


def beside_others(norms: Tensor, sinks: int) -> dict[str, list[float]]:
    """The norm at position 0 beside that of text.

    Args:
        norms: (S, layers, T).
        sinks: how many sink tokens stand in front; the text that position 0 is compared with begins after them, and
            after position 0.

    Returns:
        Lists by layer: `first` (the mean over sequences), `others` (the median over the other tokens of a sequence,
        mean over sequences) and `ratio`, the one over the other.
    """
    first = norms[..., 0].mean(dim=0)
    others = norms[..., max(1, sinks) :].median(dim=-1).values.mean(dim=0)
    return {"first": first.tolist(), "others": others.tolist(), "ratio": (first / others).tolist()}
