"""How often the intervals hold the truth, on series made up to be like real ones: python recipes/statistics/simulate.py

A series is Gaussian noise that remembers (AR(1)), each value turned into the quantile of a real distribution
(shapes.json: NLLs and paired differences of SmolLM2-135M): as skewed and as heavy in the tail as what is measured.
Its true mean is that of the distribution, known exactly. Prints a table in Markdown for each question.

    --tries 2000           series a line
    --only text            one of: text, documents, seeds, power
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from made_up import Series, Shape, shapes

from sinktrain.evaluation.statistics import Interval, estimate, estimate_over_seeds
from sinktrain.evaluation.statistics.memory import interval_blocks
from sinktrain.evaluation.statistics.pivots import Drawn
from sinktrain.evaluation.statistics.units import blocks

RESAMPLES = 499
Draw = Callable[[np.random.Generator, int], Interval]
Lines = Iterator[tuple[dict[str, Any], Draw]]


def intervals(tries: int, draw: Draw, seed: int) -> list[Interval]:
    """`tries` of them."""
    generator = np.random.default_rng(seed)
    return [draw(generator, index) for index in range(tries)]


def count(tries: int, draw: Draw, seed: int = 0) -> dict[str, float]:
    """What came of `tries` intervals whose true mean is 0.

    `false proven` is how often the upper bound is below 0, as when the true difference is exactly the margin; `false
    needed` how often the lower bound is above 0.
    """
    found = intervals(tries, draw, seed)
    return {
        "coverage of 95%": float(np.mean([each.low <= 0 <= each.high for each in found])),
        "false proven": float(np.mean([each.upper < 0 for each in found])),
        "false needed": float(np.mean([each.lower > 0 for each in found])),
    }


def power(tries: int, draw: Draw, seed: int = 0) -> dict[str, float]:
    """What `smallest_difference` and `smallest_margin` of one text achieve on the others: 80% is claimed.

    `difference seen` is how often the lower bound is above 0 where the truth is the `smallest_difference` of a text, `0
    proven` how often the upper bound is below the `smallest_margin` of a text where the truth is 0: on average over the
    texts whose limits these are; by the worst tenth of them, it is that or less.
    """
    found = intervals(tries, draw, seed)
    lower, upper = np.array([each.lower for each in found]), np.array([each.upper for each in found])
    seen = [np.mean(lower + each.smallest_difference > 0) for each in found]
    proven = [np.mean(upper < each.smallest_margin) for each in found]
    return {
        "difference seen": float(np.mean(seen)),
        "difference seen, worst tenth": float(np.quantile(seen, 0.1)),
        "0 proven": float(np.mean(proven)),
        "0 proven, worst tenth": float(np.quantile(proven, 0.1)),
    }


def one_text(shape: Shape, n: int, phi: float, generator: np.random.Generator, index: int) -> Interval:
    """One text that is one document."""
    return estimate(shape.noise(n, phi, generator)[0], resamples=RESAMPLES, seed=index)


def text_lines() -> Lines:
    """Shapes, lengths and memories of one text."""
    for name, shape in shapes().items():
        for n in (500, 2000, 8000):
            for phi in (0.1, 0.3, 0.6):
                yield {"shape": name, "tokens": n, "phi": phi}, partial(one_text, shape, n, phi)


def some_documents(
    shape: Shape, documents: int, tokens: int, own: float, spread: float, generator: np.random.Generator, index: int
) -> Interval:
    """Documents with lengths that are lognormal around `tokens`, and a mean of their own."""
    sizes = np.maximum(5, tokens * np.exp(generator.normal(0, spread, documents))).astype(int)
    number = np.repeat(np.arange(documents), sizes)
    means = own * generator.standard_normal(documents)
    series = shape.noise(len(number), 0.3, generator)[0] + means[number]
    return estimate(series, number, resamples=RESAMPLES, seed=index)


def document_lines() -> Lines:
    """Few and many, alike and not; the first are resampled by block, so that nothing is said of other documents."""
    settings = [(3, 1000, 0.0, 0.4), (10, 200, 0.0, 0.3), (10, 200, 0.3, 0.3)]
    settings += [(many, 90, own, spread) for many in (30, 100, 400) for own in (0.0, 0.3) for spread in (0.4, 0.8)]
    shape = shapes()["difference"]
    for documents, tokens, own, spread in settings:
        row = {"documents": documents, "tokens each": tokens, "own mean": own, "spread": spread}
        yield row, partial(some_documents, shape, documents, tokens, own, spread)


Method = Callable[[Series, int], Interval]


def crossed_t(series: Series, seed: int) -> Interval:
    """What is done with seeds (S, n)."""
    return estimate_over_seeds(series, resamples=RESAMPLES, seed=seed)


def crossed_bootstrap(series: Series, seed: int) -> Interval:
    """What is not: seeds (S, n) and blocks drawn anew, and the quantiles of the means taken."""
    seeds, n = series.shape
    length = interval_blocks(series.mean(axis=0))[0]
    sums = np.array([blocks(each, length).sums for each in series])
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        chosen = generator.integers(0, sums.shape[1], size=n // length)
        means[index] = sums[:, chosen][generator.integers(0, seeds, size=seeds)].mean() / length
    # A draw's mean takes the place of the truth, as in every percentile interval.
    return Interval(float(series.mean()), 1.0, Drawn(np.sort(series.mean() - means)), n, length)


def some_seeds(
    method: Method, seeds: int, between: float, common: float, shape: Shape, generator: np.random.Generator, index: int
) -> Interval:
    """Models of several seeds on one text of 2,000 tokens: what all have in common, what each has, and where it is."""
    n, phi, text = 2000, 0.3, 0.0265  # the deviation of the mean of such a text, by simulation
    shared = sqrt(common) * shape.noise(n, phi, generator)
    own = sqrt((1 - between - common) * seeds) * shape.noise(n, phi, generator, seeds)
    moved = sqrt(between * seeds) * text * generator.standard_normal((seeds, 1))
    return method(shared + own + moved, index)


def seed_lines(method: Method = crossed_t) -> Lines:
    """The shares are those of the mean's squared error."""
    shape = shapes()["difference"]
    for seeds in (3, 5, 10):
        for between, common in ((0.0, 1.0), (0.0, 0.5), (0.3, 0.7), (0.5, 0.25), (0.8, 0.1), (0.95, 0.05)):
            row = {"seeds": seeds, "between seeds": between, "common to all seeds": common}
            yield row, partial(some_seeds, method, seeds, between, common, shape)


def power_lines() -> Lines:
    """One text of every shape, and models of several seeds that are most of what is uncertain."""
    known = shapes()
    for name, shape in known.items():
        for n in (2000, 8000):
            yield {"shape": name, "tokens": n, "seeds": 1}, partial(one_text, shape, n, 0.3)
    for seeds in (3, 5, 10):
        row = {"shape": "difference", "tokens": 2000, "seeds": seeds}
        yield row, partial(some_seeds, crossed_t, seeds, 0.95, 0.05, known["difference"])


TABLES: dict[str, Callable[[], Lines]] = {
    "text": text_lines,
    "documents": document_lines,
    "seeds": seed_lines,
    "power": power_lines,
}


def main(arguments: list[str]) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--only", choices=list(TABLES))
    options = parser.parse_args(arguments)
    for name, lines in TABLES.items():
        if options.only not in (None, name):
            continue
        others = [draw for _, draw in seed_lines(crossed_bootstrap)] if name == "seeds" else []
        for index, (settings, draw) in enumerate(lines()):
            found = (power if name == "power" else count)(options.tries, draw, seed=index)
            if others:
                other = count(options.tries // 4, others[index], seed=index)
                found["coverage of a bootstrap over seeds"] = other["coverage of 95%"]
            if index == 0:
                columns = [*settings, *found]
                print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
            cells = [*map(str, settings.values()), *(f"{100 * share:.1f}%" for share in found.values())]
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
