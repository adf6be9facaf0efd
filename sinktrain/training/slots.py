"""Everything that a checkpoint keeps of weights and optimizer, as this rank holds it under any strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sinktrain.checkpoints.pieces import Place
from sinktrain.training import zero
from sinktrain.training.guarded import GuardedOptimizer, local

if TYPE_CHECKING:
    from sinktrain.training.module import SinkModule

PREFIX = "model."
"""Of the names of weights in a `SinkModule`, left out in checkpoints."""


@dataclass(frozen=True)
class Slot:
    """A tensor, or the part of one that lies on this rank.

    Attributes:
        name: `weights/NAME`, or `optimizer/NAME/STATE`.
        place: of the part in the whole.
        values: to be read or written in place.
        copies: how many ranks hold the same; they are dealt out, so that each writes some.
    """

    name: str
    place: Place
    values: Tensor
    copies: int


def slots(module: SinkModule) -> Iterator[Slot]:
    """The slots of a `SinkModule` that is being trained; the same, in the same order, on all ranks but under ZeRO."""
    optimizer: Any = module.trainer.optimizers[0]
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()  # after a validation, what was gathered for it is still in place of the parts
    if zero.engine(module.trainer) is not None:
        yield from _of_zero(module, optimizer)
        return
    ranks = module.trainer.world_size
    names = {id(parameter): name for name, parameter in _parameters(module).items()}
    for name, parameter in _parameters(module).items():
        yield _slot(f"weights/{name}", parameter, ranks)
    for name, buffer in _buffers(module).items():
        yield _slot(f"weights/{name}", buffer, ranks)
    optimizer.make_states()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, state in sorted(optimizer.state[parameter].items()):
                yield _slot(f"optimizer/{names[id(parameter)]}/{key}", state, ranks)


def _parameters(module: SinkModule) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): parameter for name, parameter in module.named_parameters()}


def _buffers(module: SinkModule) -> dict[str, Tensor]:
    """Those that `state_dict` would hold."""
    found = {}
    for path, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set:
                found[f"{path}.{name}".removeprefix(PREFIX)] = buffer
    return found


def _slot(name: str, tensor: Tensor, ranks: int) -> Slot:
    if not isinstance(tensor, DTensor):
        return Slot(name, Place.whole(tensor.shape), tensor.detach(), ranks)
    mesh = tensor.device_mesh
    size, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    # With tensor parallelism, what is not split by it lies on as many ranks.
    return Slot(
        name, Place(tuple(tensor.shape), tuple(offset), tuple(size)), local(tensor.detach()), ranks // mesh.size()
    )


def _of_zero(module: SinkModule, optimizer: Any) -> Iterator[Slot]:
    """ZeRO's float32 weights stand for those that the model computes with, which follow from them (`zero.spread`)."""
    inner: GuardedOptimizer = optimizer.optimizer
    ranks, parameters = module.trainer.world_size, _parameters(module)
    # First what all ranks have, so that it has the same number on all.
    for name, buffer in _buffers(module).items():
        yield _slot(f"weights/{name}", buffer, ranks)
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            yield from _frozen(name, parameter, ranks)
    for part in zero.fragments(optimizer, parameters):
        place = Place(part.shape, (part.start,), (part.length,), flat=True)
        yield Slot(f"weights/{part.name}", place, part.of(part.flat.detach()), 1)
        state = inner.make_state(part.flat, "adamw")
        for key in ("exp_avg", "exp_avg_sq"):
            yield Slot(f"optimizer/{part.name}/{key}", place, part.of(state[key]), 1)
        # One number for all of a flat tensor; every rank that has a part of this weight keeps it.
        yield Slot(f"optimizer/{part.name}/step", Place.whole(()), state["step"], 1)


def _frozen(name: str, parameter: Any, ranks: int) -> Iterator[Slot]:
    """A weight that is not trained: whole on every rank, or one part of it under stage 3."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        yield _slot(f"weights/{name}", parameter, ranks)
        return
    start = torch.distributed.get_rank() * part.ds_numel
    length = min(part.ds_numel, parameter.ds_numel - start)
    if length > 0:
        place = Place(tuple(parameter.ds_shape), (start,), (length,), flat=True)
        yield Slot(f"weights/{name}", place, part.detach()[:length], 1)
