"""The sinks' rows as parameters of their own, so that the rest of an embedding needs no gradient and no moments.

A whole embedding with a gradient, two moments and 128,256 rows of 4,096 is 6.3 GB for the sake of one row. Here the row
(k, D) is a parameter beside the frozen embedding. Forward passes take it from there; after each optimizer step it is
written into the embedding too, so that the model is at any time the plain one that is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sinktrain.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sink_rows"
"""The parameter's name, on the embedding module."""


class SinkRows:
    """Gives a model's embedding, whose weight is frozen, rows of its own for the sinks, in place.

    Args:
        model: with the sinks' rows in its embedding.
        sink_ids: k of them.

    Raises:
        UserError: the embedding does more than look rows up and scale them.
    """

    embedding: Any
    head: Any

    def __init__(self, model: PreTrainedModel, sink_ids: Sequence[int]) -> None:
        self.ids = list(sink_ids)
        self.embedding = model.get_input_embeddings()
        self.head = model.get_output_embeddings()
        weight: Tensor = self.embedding.weight
        self.tied = self.head is not None and self.head.weight is self.embedding.weight
        self._scale = _scale(self.embedding, self.ids)
        # In float32 whatever the frozen weights are kept in: steps are smaller than bfloat16 can add up.
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.embedding.register_parameter(NAME, nn.Parameter(weight.detach()[self.ids].to(wide)))
        self.embedding.register_forward_hook(self._look_up)
        if self.tied:
            self.head.register_forward_hook(self._score)

    @property
    def parameter(self) -> nn.Parameter:
        """(k, D); under FSDP2 a `DTensor` outside of forward passes."""
        found: nn.Parameter = self.embedding.sink_rows
        return found

    def _look_up(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = args[0][..., None]
        for number, index in enumerate(self.ids):
            output = torch.where(ids == index, (self.parameter[number] * self._scale).to(output.dtype), output)
        return output

    def _score(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """A tied head scores with the same rows; the values are there already, the gradient is not."""
        if not torch.is_grad_enabled():
            return output
        bias = getattr(module, "bias", None)
        bias = None if bias is None else bias[self.ids]
        own = nn.functional.linear(args[0], self.parameter.to(args[0].dtype), bias)
        return output.index_copy(-1, torch.tensor(self.ids, device=output.device), own.to(output.dtype))

    @torch.no_grad()
    def write_back(self) -> None:
        """Copies the rows into the embedding; all ranks call it."""
        weight, rows = self.embedding.weight, self.parameter.detach()
        if isinstance(rows, DTensor):
            rows = rows.full_tensor()
        if not isinstance(weight, DTensor):
            weight[self.ids] = rows.to(weight.dtype)
            return
        mesh, placements = weight.device_mesh, weight.placements
        chosen = torch.zeros(weight.shape[0], 1, device=rows.device, dtype=torch.bool)
        chosen[self.ids] = True
        whole = torch.zeros(len(chosen), dtype=torch.long, device=rows.device)
        whole[self.ids] = torch.arange(len(self.ids), device=rows.device)
        mine = distribute_tensor(chosen, mesh, placements).to_local().flatten()
        which = distribute_tensor(whole[:, None], mesh, placements).to_local().flatten()[mine]
        weight.to_local()[mine] = rows[which].to(weight.dtype)


@torch.no_grad()
def _scale(embedding: Any, ids: list[int]) -> float:
    """What the embedding multiplies its rows with (Gemma 3 has the root of its width there)."""
    rows = embedding.weight[ids]
    found = embedding(torch.tensor(ids, device=rows.device))
    scale = float((found.double() * rows.double()).sum() / rows.double().square().sum().clamp(min=1e-30))
    scale = scale if bool(rows.any()) else 1.0
    if found.shape != rows.shape or not torch.allclose(found.float(), rows.float() * scale, rtol=2e-2, atol=1e-6):
        raise UserError(
            f"model.tuning.mode: {type(embedding).__name__} does more than look up rows, so that the sink's cannot be "
            "trained by itself; use model.tuning.mode full."
        )
    return scale
