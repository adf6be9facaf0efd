"""Tensors out of a checkpoint, put together from the parts of all ranks, for any other way to spread them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.checkpoints.pieces import Place, place


class Reader:
    """Reads tensors of a checkpoint by name, whole or in part. Only what is asked for is read.

    Args:
        folder: of the checkpoint.
        files: of which ranks, as a pattern; what one rank alone has needs its own only.

    Raises:
        UserError: its index cannot be read.
    """

    def __init__(self, folder: Path, files: str = "rank-*") -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        self._files: dict[str, Any] = {}
        try:
            for path in sorted(folder.glob(f"{files}.json")):
                for name, entry in json.loads(path.read_text())["pieces"].items():
                    self._places[name].append((path.stem, place(entry)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: its index is damaged ({error}); use another checkpoint.") from error

    def names(self, prefix: str = "") -> list[str]:
        """Of the tensors that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._places if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._places[name][0][1].shape

    def whole(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in full, in the host's memory."""
        made = torch.empty(self.shape(name), dtype=dtype or self._dtype(name))
        self.read_into(made, name, Place.whole(made.shape))
        return made

    def read_into(self, target: Tensor, name: str, wanted: Place) -> None:
        """Fills `target`, on any device and of any dtype, with the part `wanted` of a tensor.

        Raises:
            UserError: there is no such tensor, it has another shape, or parts of it are missing.
        """
        if name not in self._places:
            raise UserError(f"{self.folder}: holds no {name}; was it made by another model? Use another checkpoint.")
        if self.shape(name) != wanted.shape:
            raise UserError(
                f"{self.folder}: its {name} has the shape {list(self.shape(name))} where the model has "
                f"{list(wanted.shape)}; use the config that it was trained with."
            )
        sources = list({where: (rank, where) for rank, where in self._places[name]}.values())
        if all(where.as_run() is not None for where in (wanted, *(where for _, where in sources))):
            filled = self._copy_runs(target, name, wanted, sources)
        elif not any(where.flat for where in (wanted, *(where for _, where in sources))):
            filled = self._copy_boxes(target, name, wanted, sources)
        else:  # runs on one side and columns on the other
            whole = self.whole(name)
            start, end = wanted.as_run() or (0, 0)
            part = whole.flatten()[start:end] if end else whole[_slices(wanted.offset, wanted.size)]
            target.copy_(part.reshape(target.shape))
            return
        if filled != wanted.numel:
            raise UserError(f"{self.folder}: parts of {name} are missing; use another checkpoint.")

    def _copy_runs(self, target: Tensor, name: str, wanted: Place, sources: list[tuple[str, Place]]) -> int:
        first, last = wanted.as_run() or (0, 0)
        flat, filled = target.view(-1) if target.is_contiguous() else target.reshape(-1), 0
        for rank, where in sources:
            start, end = where.as_run() or (0, 0)
            low, high = max(first, start), min(last, end)
            if low < high:
                values = self._open(rank).get_tensor(name).view(-1)
                flat[low - first : high - first].copy_(values[low - start : high - start])
                filled += high - low
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))
        return filled

    def _copy_boxes(self, target: Tensor, name: str, wanted: Place, sources: list[tuple[str, Place]]) -> int:
        filled = 0
        for rank, where in sources:
            low = [max(a, b) for a, b in zip(wanted.offset, where.offset, strict=True)]
            ends = zip(wanted.offset, wanted.size, where.offset, where.size, strict=True)
            size = [min(a + n, b + m) - start for start, (a, n, b, m) in zip(low, ends, strict=True)]
            if min(size) > 0:
                values = self._open(rank).get_tensor(name)[_slices(_minus(low, where.offset), size)]
                target[_slices(_minus(low, wanted.offset), size)].copy_(values)
                filled += values.numel()
        return filled

    def _dtype(self, name: str) -> torch.dtype:
        return self._open(self._places[name][0][0]).get_tensor(name).dtype  # type: ignore[no-any-return]

    def _open(self, rank: str) -> Any:
        """A file of a rank, mapped into memory."""
        if rank not in self._files:
            try:
                self._files[rank] = safe_open(self.folder / f"{rank}.safetensors", framework="pt")
            except Exception as error:  # safetensors raises classes of its own
                raise UserError(f"{self.folder}: its {rank}.safetensors is damaged; use another checkpoint.") from error
        return self._files[rank]

    def close(self) -> None:
        """Unmaps the files."""
        self._files.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)


def _slices(offset: Any, size: Any) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(offset, size, strict=True))


def _minus(first: Any, second: Any) -> list[int]:
    return [a - b for a, b in zip(first, second, strict=True)]
