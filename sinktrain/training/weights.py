"""The weights of a checkpoint, each read from the disk when it is asked for, so that none but it is in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.sinks.rows import NAME as ROWS

_BASE = ".base_layer.weight"
_FACTORS = ".lora_A.default.weight", ".lora_B.default.weight"


class Weights(Mapping[str, Tensor]):
    """Tensors by their names in the plain model, without adapters.

    Args:
        names: of what the checkpoint holds; sink rows that lie beside their embedding are in it already.
        read: gives one of them, in the dtype that is asked for or, by None, its own.
        dtype: of what this gives.
        scaling: of adapters, `alpha / rank`, which are added to the matrices that they adapt; None leaves them out.
        source: for messages: the option that named the checkpoint, and its value.
        flipped: names of matrices that are stored as (in, out) rather than (out, in), as GPT-2 has them.
    """

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str, torch.dtype | None], Tensor],
        dtype: torch.dtype,
        scaling: float | None,
        source: str,
        flipped: frozenset[str] = frozenset(),
    ) -> None:
        self._read, self._dtype, self._scaling, self._source, self._flipped = read, dtype, scaling, source, flipped
        held = [name for name in names if name.rpartition(".")[2] != ROWS]
        self._more: Mapping[str, Tensor] = {}
        self._stored = {name.replace(".base_layer.", "."): name for name in held if ".lora_" not in name}
        self._adapters = [name for name in held if ".lora_" in name]

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, in the host's memory.

        Raises:
            UserError: the checkpoint does not hold it.
        """
        if name in self._more:
            return self._more[name].clone()
        if name not in self._stored:
            raise UserError(f"{self._source}: its weights do not fit its config ({name} is missing); name another.")
        stored = self._stored[name]
        if not stored.endswith(_BASE) or self._scaling is None:
            return self._read(stored, self._dtype)
        # LoRA, arXiv 2106.09685, equation 3: W + (alpha / r) B A, in float32 as it was trained.
        first, second = (self._read(stored.replace(_BASE, part), torch.float32) for part in _FACTORS)
        added = second @ first * self._scaling
        base = self._read(stored, torch.float32)
        return base.add_(added.T if name in self._flipped else added).to(self._dtype)

    def of_shape(self, name: str, shape: torch.Size) -> Tensor:
        """One tensor, which must have this shape.

        Raises:
            UserError: it has another, or is missing.
        """
        tensor = self[name]
        if tensor.shape != shape:
            raise UserError(
                f"{self._source}: its {name} has the shape {list(tensor.shape)} where its config has {list(shape)}; "
                "name another."
            )
        return tensor

    def __contains__(self, name: Any) -> bool:
        return name in self._stored or name in self._more

    def __iter__(self) -> Iterator[str]:
        return iter({**self._stored, **self._more})

    def __len__(self) -> int:
        return len({**self._stored, **self._more})

    def filled_up(self, more: Mapping[str, Tensor]) -> Weights:
        """The same, and beside what the checkpoint holds those of `more` that it does not."""
        filled = copy.copy(self)
        filled._more = {name: tensor for name, tensor in more.items() if name not in self._stored}
        return filled

    def adapters(self) -> dict[str, Tensor]:
        """The matrices of the adapters, in float32, by the names that PEFT gives them inside the model."""
        return {name: self._read(name, torch.float32) for name in self._adapters}
