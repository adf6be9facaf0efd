"""Series made up to be like real ones, whose truth is known."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

Series = NDArray[np.float64]
SHAPES = Path(__file__).with_name("shapes.json")


class Shape:
    """A distribution by its quantiles, straight between them, shifted to a mean of 0 and scaled to a deviation of 1."""

    def __init__(self, at: Series, quantiles: Series) -> None:
        self.at = at
        left, right, width = quantiles[:-1], quantiles[1:], np.diff(at)
        mean = float(np.sum(width * (left + right) / 2))
        square = float(np.sum(width * (left**2 + left * right + right**2) / 3))
        self.quantiles = (quantiles - mean) / sqrt(square - mean**2)

    def noise(self, n: int, phi: float, generator: np.random.Generator, rows: int = 1) -> Series:
        """(rows, n) of it; neighbours correlate by `phi` before they are turned into this shape."""
        shocks = generator.standard_normal((rows, n + 100)) * sqrt(1 - phi**2)
        normal = lfilter([1.0], [1.0, -phi], shocks)[:, 100:]
        found: Series = np.interp(ndtr(normal), self.at, self.quantiles)
        return found

    def moments(self) -> tuple[float, float]:
        """Skewness and kurtosis (3 for a normal distribution)."""
        fine = np.interp((np.arange(2_000_000) + 0.5) / 2_000_000, self.at, self.quantiles)
        return float(np.mean(fine**3)), float(np.mean(fine**4))


def shapes() -> dict[str, Shape]:
    """Those of shapes.json, and the normal distribution."""
    stored = json.loads(SHAPES.read_text())
    at = np.array(stored["at"])
    found = {name: Shape(at, np.array(values)) for name, values in stored["quantiles"].items()}
    inner = np.linspace(1e-5, 1 - 1e-5, 4001)
    found["normal"] = Shape(np.concatenate(([0], inner, [1])), ndtri(np.concatenate(([5e-6], inner, [1 - 5e-6]))))
    return found
