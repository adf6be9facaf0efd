"""Turning queries and keys from one position to another (RoPE, arXiv 2104.09864, equation 34).

A rotation composes: what was rotated at position p and is turned by d is what the model would have made at p + d.
Angles are taken in float64, since float32 angles are wrong beyond about 2^20 positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """How a layer rotates its heads.

    Args:
        frequencies: (R/2,) float64, radians a position, for R of the D dimensions of a head.
        interleaved: pairs are dimensions (2m, 2m+1); otherwise (m, m + R/2), the usual layout of transformers.
        begin: the first of the R rotated dimensions.
    """

    frequencies: Tensor
    interleaved: bool = False
    begin: int = 0

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """For `positions` (..., L): the cosine of each rotated dimension and the sine with its sign, (..., L, R)."""
        angles = positions.double()[..., None] * self.frequencies.to(positions.device)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        if self.interleaved:
            return torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def rotate(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotates x (..., L, D) by a `table`, computing in the table's dtype; returns x's."""
        cos, sin = table
        width, begin = cos.shape[-1], self.begin
        part = x if width == x.shape[-1] else x[..., begin : begin + width]
        if self.interleaved:
            partner = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partner = part.roll(width // 2, dims=-1)
        # Mixed dtypes promote inside these kernels: no copy of x in float32 is made.
        rotated = torch.addcmul(part * cos, partner, sin).to(x.dtype)
        if width == x.shape[-1]:
            return rotated
        return torch.cat((x[..., :begin], rotated, x[..., begin + width :]), dim=-1)

    def equals(self, other: Rotary) -> bool:
        """Whether both rotate alike."""
        same = (self.interleaved, self.begin) == (other.interleaved, other.begin)
        return same and torch.equal(self.frequencies, other.frequencies)

    def turn(self, x: Tensor, distance: Tensor) -> Tensor:
        """Turns x (..., L, D) by `distance` (L,) positions; computes and returns at least float32."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return self.rotate(x, self.table(distance, x.dtype))
