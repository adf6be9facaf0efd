"""Parts of tensors in a file: safetensors for the values, and beside it where each part belongs in its whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of the format (github.com/huggingface/safetensors, "Format").
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a part belongs.

    Attributes:
        shape: of the whole tensor.
        offset: where the part begins, in each dimension; with `flat`, one number, in the flattened tensor.
        size: of the part, as `offset`.
        flat: the part is a run of the flattened tensor, and no box.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    flat: bool = False

    @classmethod
    def whole(cls, shape: Iterable[int]) -> Place:
        """A part that is all of it."""
        sizes = tuple(shape)
        return cls(sizes, (0,) * len(sizes), sizes)

    @property
    def numel(self) -> int:
        """Values in the part."""
        return math.prod(self.size)

    def as_run(self) -> tuple[int, int] | None:
        """First and last + 1 in the flattened tensor, if the part is a run there: all but its first dimension whole."""
        if self.flat:
            return self.offset[0], self.offset[0] + self.size[0]
        if self.size[1:] != self.shape[1:]:
            return None
        row = math.prod(self.shape[1:])
        start = self.offset[0] * row if self.offset else 0
        return start, start + self.numel


@dataclass(frozen=True)
class Piece:
    """A part of a named tensor: where it belongs, and its values in the host's memory."""

    name: str
    place: Place
    values: Tensor


def encode(pieces: list[Piece]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, without a second copy of the values."""
    header: dict[str, Any] = {}
    end = 0
    for piece in pieces:
        start, end = end, end + piece.values.numel() * piece.values.element_size()
        shape = list(piece.values.shape)
        if piece.values.dtype not in _DTYPES:
            raise TypeError(f"{piece.name}: {piece.values.dtype} has no name in safetensors")
        header[piece.name] = {"dtype": _DTYPES[piece.values.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for piece in pieces:
        if piece.values.numel():
            yield piece.values.contiguous().reshape(-1).view(torch.uint8).numpy().data


def index(pieces: list[Piece]) -> dict[str, Any]:
    """Where the pieces belong, as plain values."""
    return {
        piece.name: {"shape": piece.place.shape, "offset": piece.place.offset, "size": piece.place.size,
                     **({"flat": True} if piece.place.flat else {})}
        for piece in pieces
    }  # fmt: skip


def place(entry: dict[str, Any]) -> Place:
    """From `index`."""
    shape, offset, size = (tuple(map(int, entry[key])) for key in ("shape", "offset", "size"))
    return Place(shape, offset, size, bool(entry.get("flat", False)))
