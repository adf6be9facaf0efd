"""What the model said before it was tuned, as something to hold it to: its own next-token distribution.

It reads the same text as the model in training, with what it used to have in front of a text in place of the sinks: its
BOS, if it has one, or nothing; a model that had its sink before keeps it. Where nothing but rows of new sink tokens and
adapters are trained, it is the same weights once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sinktrain.streaming.train import band_aside
from sinktrain.training.adapters import without_adapters
from sinktrain.training.chunked import Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Run = Callable[..., Tensor]
"""A model's answer (B, T, D or V) to ids (B, T) and positions (B, T) or None; `dense`: all of a sample is in view."""


class Teacher:
    """The model as it was.

    Args:
        model: a copy of it, or the one in training, if `shared`.
        shared: whether it is the one in training, whose weights stay as they are.
        front: the tokens that it expects in front of a text, BOS for one.
        sink_ids: of the model in training.
        known: how many tokens its vocabulary had; None for as many as now.
        share: of the objective.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shared: bool,
        front: Sequence[int],
        sink_ids: Sequence[int],
        known: int | None,
        share: float,
    ) -> None:
        self.model, self.shared, self.known, self.share = model, shared, known, share
        self._front, self._sinks = list(front)[-len(sink_ids) :] if sink_ids else [], list(sink_ids)
        if not shared:
            model.requires_grad_(False)
            model.eval()

    @torch.no_grad()
    def wanted(self, ids: Tensor, positions: Tensor | None, run: Run) -> Wanted:
        """What the model in training is held to, at each of its positions.

        Args:
            ids: (B, T) with the sinks, as the model in training gets them.
            positions: (B, T) that restart with each document; None for samples that are one text.
            run: gives hidden states, or logits.
        """
        text, places, speaks = self._inputs(ids, positions)
        if self.shared:
            was_training = self.model.training
            self.model.eval()
            try:
                with without_adapters(self.model), band_aside(self.model):
                    other = run(self.model, text, places, dense=True)
            finally:
                self.model.train(was_training)
        else:
            self.model.to(ids.device)  # type: ignore[arg-type]  # a copy is in no module that Lightning moves
            other = run(self.model, text, places, dense=True)
        if other.shape[1] < ids.shape[1]:  # it was not given the sinks at all
            missing = ids.shape[1] - other.shape[1]
            other = torch.cat((other.new_zeros(len(other), missing, other.shape[2]), other), dim=1)
        head = self.model.get_output_embeddings()
        return Wanted(share=self.share, other=other, head=head, known=self.known, speaks=speaks)

    def _inputs(self, ids: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Token ids and positions for the model as it was, and where it says something (B, T)."""
        sinks, front = len(self._sinks), len(self._front)
        if sinks == 0:
            return ids, positions, None
        if positions is None and sinks == front:
            swapped = ids.clone()
            swapped[:, :sinks] = torch.tensor(self._front, device=ids.device)
            return swapped, None, None
        if positions is None:
            text = torch.cat((ids.new_tensor(self._front).expand(len(ids), -1), ids[:, sinks:]), dim=1)
            speaks = torch.ones_like(ids, dtype=torch.bool)
            speaks[:, : sinks - front] = False
            return text, None, speaks
        # Documents are told apart by positions of 0: sinks that nothing stands for become documents of one token.
        is_sink = torch.isin(ids, ids.new_tensor(self._sinks)) & (positions < sinks)
        starts = (
            torch.where(positions == 0, torch.arange(positions.shape[1], device=ids.device), 0).cummax(dim=1).values
        )
        offset = torch.full_like(ids, sinks - front)
        if front:  # a conversation that brings its own BOS is given no second one
            first = ids.gather(1, (starts + sinks).clamp(max=ids.shape[1] - 1))
            offset = torch.where(first == self._front[0], sinks, offset)
        swapped, places = ids.clone(), (positions - offset).clamp(min=0)
        for number, token in enumerate(self._front):
            swapped[is_sink & (positions == offset + number)] = token
        swapped[is_sink & (positions < offset)] = 0  # any token that it knows
        places = torch.where(is_sink.gather(1, starts), places, positions)  # padding has no sinks
        return swapped, places, ~(is_sink & (positions < offset))
