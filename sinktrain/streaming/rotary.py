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
        """Cosines and sines (..., L, R/2) of `positions` (..., L), in `dtype`."""
        angles = positions.double()[..., None] * self.frequencies.to(positions.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def rotate(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotates x (..., L, D) by a `table`, computing in the table's dtype; returns x's."""
        cos, sin = table
        width, begin = 2 * cos.shape[-1], self.begin
        part = x if width == x.shape[-1] else x[..., begin : begin + width]
        a, b = (part[..., 0::2], part[..., 1::2]) if self.interleaved else part.chunk(2, dim=-1)
        # Mixed dtypes promote inside these kernels: no copy of x in float32 is made.
        left, right = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
        if self.interleaved:
            rotated = torch.stack((left, right), dim=-1).flatten(-2).to(x.dtype)
        else:
            rotated = torch.cat((left.to(x.dtype), right.to(x.dtype)), dim=-1)
        if width == x.shape[-1]:
            return rotated
        return torch.cat((x[..., :begin], rotated, x[..., begin + width :]), dim=-1)

    def turn(self, x: Tensor, distance: Tensor) -> Tensor:
        """Turns x (..., L, D) by `distance` (L,) positions; computes and returns at least float32."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return self.rotate(x, self.table(distance, x.dtype))
