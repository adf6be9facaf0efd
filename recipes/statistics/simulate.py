"""How often the intervals hold the truth, on series made up to be like real ones: python recipes/statistics/simulate.py

A series is Gaussian noise that remembers (AR(1)), each value turned into the quantile of a real distribution
(shapes.json: NLLs and paired differences of SmolLM2-135M): as skewed and as heavy in the tail as what is measured.
Its true mean is that of the distribution, known exactly. Prints a table in Markdown for each question.

    --tries 2000           series a line
    --only text            one of: text, documents, seeds
    --lines 3              of each table, the first only
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr

from sinktrain.evaluation.statistics import Interval, estimate, estimate_over_seeds

Series = NDArray[np.float64]
SHAPES = Path(__file__).with_name("shapes.json")
RESAMPLES = 999


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
    from scipy.special import ndtri

    stored = json.loads(SHAPES.read_text())
    at = np.array(stored["at"])
    found = {name: Shape(at, np.array(values)) for name, values in stored["quantiles"].items()}
    inner = np.linspace(1e-5, 1 - 1e-5, 4001)
    found["normal"] = Shape(np.concatenate(([0], inner, [1])), ndtri(np.concatenate(([5e-6], inner, [1 - 5e-6]))))
    return found


def count(tries: int, draw: Callable[[np.random.Generator, int], Interval], seed: int = 0) -> dict[str, float]:
    """What came of `tries` intervals whose true mean is 0.

    `false proven` is how often the upper bound is below 0, as when the true difference is exactly the margin; `false
    needed` how often the lower bound is above 0.
    """
    generator = np.random.default_rng(seed)
    found = [draw(generator, index) for index in range(tries)]
    return {
        "coverage": float(np.mean([each.low <= 0 <= each.high for each in found])),
        "false proven": float(np.mean([each.upper < 0 for each in found])),
        "false needed": float(np.mean([each.lower > 0 for each in found])),
        "width": float(np.mean([each.high - each.low for each in found])),
    }


def text_lines() -> Iterator[tuple[dict[str, Any], Callable[[np.random.Generator, int], Interval]]]:
    """One text that is one document."""
    for name, shape in shapes().items():
        for n in (500, 2000, 8000):
            for phi in (0.1, 0.3, 0.6):

                def draw(
                    generator: np.random.Generator, index: int, shape: Shape = shape, n: int = n, phi: float = phi
                ) -> Interval:
                    return estimate(shape.noise(n, phi, generator)[0], resamples=RESAMPLES, seed=index)

                yield {"shape": name, "tokens": n, "phi": phi}, draw


def document_lines() -> Iterator[tuple[dict[str, Any], Callable[[np.random.Generator, int], Interval]]]:
    """Texts of documents with lengths as uneven as real ones' (lognormal) and a mean of their own."""
    for name in ("difference", "normal"):
        shape = shapes()[name]
        for documents, own in ((30, 0.0), (30, 0.3), (100, 0.0), (100, 0.3), (400, 0.3)):
            for spread in (0.4, 0.8):

                def draw(
                    generator: np.random.Generator,
                    index: int,
                    shape: Shape = shape,
                    documents: int = documents,
                    own: float = own,
                    spread: float = spread,
                ) -> Interval:
                    sizes = np.maximum(5, np.exp(generator.normal(4.5, spread, documents))).astype(int)
                    number = np.repeat(np.arange(documents), sizes)
                    series = (
                        shape.noise(len(number), 0.3, generator)[0] + own * generator.standard_normal(documents)[number]
                    )
                    return estimate(series, number, resamples=RESAMPLES, seed=index)

                yield {"shape": name, "documents": documents, "own mean": own, "spread of lengths": spread}, draw


def seed_lines() -> Iterator[tuple[dict[str, Any], Callable[[np.random.Generator, int], Interval]]]:
    """Models of several seeds on one text; the shares are those of the squared error between seeds and in the text."""
    shape, n, phi = shapes()["difference"], 2000, 0.3
    text = float(np.std([shape.noise(n, phi, np.random.default_rng(s))[0].mean() for s in range(400)]))
    for seeds in (3, 5, 10):
        for between, common in ((0.0, 1.0), (0.0, 0.5), (0.3, 0.7), (0.5, 0.25), (0.8, 0.1), (0.95, 0.05)):

            def draw(
                generator: np.random.Generator,
                index: int,
                seeds: int = seeds,
                between: float = between,
                common: float = common,
            ) -> Interval:
                shared = sqrt(common) * shape.noise(n, phi, generator)
                own = sqrt((1 - between - common) * seeds) * shape.noise(n, phi, generator, seeds)
                moved = sqrt(between * seeds) * text * generator.standard_normal((seeds, 1))
                return estimate_over_seeds(shared + own + moved, resamples=RESAMPLES, seed=index)

            yield {"seeds": seeds, "between seeds": between, "common to all seeds": common}, draw


TABLES = {"text": text_lines, "documents": document_lines, "seeds": seed_lines}


def main(arguments: list[str]) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--only", choices=list(TABLES))
    parser.add_argument("--lines", type=int)
    options = parser.parse_args(arguments)
    for name, lines in TABLES.items():
        if options.only not in (None, name):
            continue
        for index, (settings, draw) in enumerate(lines()):
            if options.lines is not None and index >= options.lines:
                break
            if index == 0:
                columns = [*settings, "coverage of 95%", "false proven", "false needed", "width"]
                print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
            found = count(options.tries, draw, seed=index)
            shares = [f"{100 * found[key]:.1f}%" for key in ("coverage", "false proven", "false needed")]
            cells = [*map(str, settings.values()), *shares, f"{found['width']:.4f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
