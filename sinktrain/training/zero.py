"""What DeepSpeed's ZeRO keeps on a rank: parts of flattened float32 weights, and of the optimizer's state of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sinktrain.sinks.rows import SinkRows


@dataclass(frozen=True)
class Fragment:
    """A part of one parameter whose float32 weight and optimizer state are on this rank.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        start: of the part in the flattened parameter.
        flat: (N,) what the optimizer steps on; the part is in it, among others.
        place: of the part in `flat`.
        length: n, values of the part, padding left out.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    flat: Tensor
    place: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """This part (n,) of a tensor that is laid out as `flat`."""
        return flat.narrow(0, self.place, self.length)


def engine(trainer: Trainer) -> Any:
    """DeepSpeed's engine, or None under any other strategy."""
    found = getattr(trainer.strategy, "deepspeed_engine", None)
    return found if found is not None and hasattr(found, "zero_optimization_stage") else None


def fragments(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> Iterator[Fragment]:
    """Everything trained that ZeRO keeps here.

    Args:
        optimizer: DeepSpeed's, of stage 1, 2 or 3.
        parameters: by name.
    """
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            yield from _fragment_of_stage_3(optimizer, name, parameter)
        elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
            address, place = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            yield Fragment(name, tuple(parameter.shape), address.start, flat, place.start, address.numel)


def _fragment_of_stage_3(optimizer: Any, name: str, parameter: Any) -> Iterator[Fragment]:
    group, place, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = optimizer.dp_process_group.rank() * length
    length = min(length, parameter.ds_numel - start)  # the last ranks hold padding
    if length > 0:
        flat = optimizer.fp32_partitioned_groups_flat[group]
        yield Fragment(name, tuple(parameter.ds_shape), start, flat, place, length)


def spread(optimizer: Any) -> None:
    """Brings the weights that the model computes with up to what the float32 ones are, on all ranks."""
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
        for group in range(len(optimizer.bit16_groups)):
            optimizer._update_model_bit16_weights(group)
        return
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


@torch.no_grad()
def write_back(rows: SinkRows) -> None:
    """`SinkRows.write_back` where stage 3 may have spread the embedding and the rows over the ranks; all call it."""
    weight = rows.embedding.weight
    if not hasattr(weight, "ds_id"):
        rows.write_back()
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([rows.parameter]):
        values = rows.parameter.detach().to(weight.dtype).clone()
    part, width = weight.ds_tensor, values.shape[1]
    start = torch.distributed.get_rank() * part.ds_numel
    for index, row in zip(rows.ids, values, strict=True):
        first, last = max(index * width, start), min((index + 1) * width, start + part.ds_numel)
        if first < last:
            part.data[first - start : last - start] = row[first - index * width : last - index * width]
    if weight.shape == weight.ds_shape:  # gathered now, or always, if it is small
        weight[rows.ids] = values


class UndecayedParts:
    """`UndecayedRows` where a rank has only parts of the rows, inside of flat tensors.

    Args:
        parts: of the matrix that holds the rows.
        rows: their numbers.
        width: D, of a row.
    """

    def __init__(self, parts: list[Fragment], rows: list[int], width: int) -> None:
        self._spans: list[tuple[Tensor, int, int]] = []
        for part in parts:
            for row in rows:
                first = max(row * width, part.start)
                last = min((row + 1) * width, part.start + part.length)
                if first < last:
                    self._spans.append((part.flat, part.place + first - part.start, last - first))

    def before(self) -> list[Tensor]:
        """Copies of the parts, each (n,)."""
        return [flat.detach().narrow(0, place, length).clone() for flat, place, length in self._spans]

    def give_back(self, before: list[Tensor], groups: list[dict[str, Any]], skip: Tensor | None) -> None:
        """After a step that began with `before`; nothing where the step was skipped."""
        for (flat, place, length), values in zip(self._spans, before, strict=True):
            for group in groups:
                if any(parameter is flat for parameter in group["params"]) and flat.grad is not None:
                    lost = values * (group["lr"] * group["weight_decay"])
                    flat.detach().narrow(0, place, length).add_(lost if skip is None else lost * (1 - skip))
