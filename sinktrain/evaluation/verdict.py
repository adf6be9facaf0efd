"""The verdict: is one sink enough, by how much at most is it worse, and is it needed at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sinktrain.base.errors import UserError
from sinktrain.evaluation.bootstrap import bootstrap_mean
from sinktrain.evaluation.results import Results
from sinktrain.streaming import CacheSpec

SCHEMA = 1
FEWEST_TOKENS = 200
FEWEST_BLOCKS = 20
Statement = Literal["proven", "not proven", "could not be judged"]


@dataclass(frozen=True)
class Comparison:
    """The paired difference in NLL, a minus b, over the tokens that both predicted with a full cache."""

    a: str
    b: str
    question: str
    tokens: int
    difference: float
    interval: tuple[float, float]
    lower: float
    upper: float
    block_length: int
    enough: bool

    def to_dict(self, holds: bool) -> dict[str, Any]:
        """Plain values, with whether the comparison came out as the question hopes."""
        return {**vars(self), "interval": list(self.interval), "holds": holds}


def compare(results: Results, a: str, b: str, question: str, *, resamples: int, seed: int) -> Comparison | None:
    """Compares two caches token by token; None when one of them was not measured or is not finite."""
    if a not in results.nll or b not in results.nll:
        return None
    series = results.nll[a] - results.nll[b]
    sampled = np.isfinite(results.nll["recompute"]) if "recompute" in (a, b) else True
    series = series[results.full_cache() & sampled]
    if len(series) == 0 or not np.isfinite(series).all():
        return None
    found = bootstrap_mean(series, resamples=resamples, seed=seed)
    enough = found.tokens >= FEWEST_TOKENS and found.tokens >= FEWEST_BLOCKS * found.block_length
    return Comparison(
        a, b, question, found.tokens, found.mean, (found.low, found.high), found.lower, found.upper,
        found.block_length, enough,
    )  # fmt: skip


def judge(
    results: Results, cache: CacheSpec, against: CacheSpec, *, margin: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The verdict as a JSON record (schema 1).

    Proven: the one-sided upper 95% bound of the mean paired difference in NLL, `cache` minus `against`, is below
    `margin`, and so is that of `cache` minus recompute. Needed: the lower 95% bound of 0+C minus `cache` is above it.

    Args:
        results: of `sinktrain evaluate`, with the rows `cache`, `against`, recompute, and 0+C if `needed` is asked.
        cache: the cache whose sufficiency is in question, such as 1+255.
        against: the same size with more sinks, such as 4+252.
        margin: the largest difference in NLL that counts as none, in nats a token.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: the caches differ in size, or the results do not hold them.
    """
    if cache.size is None or cache.size != against.size:
        raise UserError(f"--against {against}: must hold as many positions as --cache {cache}; change one of them.")
    if against.sinks <= cache.sinks:
        raise UserError(f"--against {against}: must keep more sinks than --cache {cache}; try 4+{cache.size - 4}.")
    if cache.size != results.size:
        raise UserError(
            f"--cache {cache}: recompute was measured for C = {results.size}, the largest cache of the results; "
            "run `sinktrain evaluate` with caches of one size."
        )
    for spec in (cache, against):
        if str(spec) not in results.nll:
            raise UserError(f"--results: holds no cache {spec}; run `sinktrain evaluate --caches` with it.")
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    window = f"0+{cache.size}"
    sinks, more = _sinks(cache.sinks), _sinks(against.sinks)
    pairs = [
        compare(results, str(cache), str(against), f"Is {sinks} as good as {more}?", **options),
        compare(results, str(cache), "recompute", f"Is {sinks} as good as recomputing?", **options),
    ]
    needed = compare(results, window, str(cache), "Is the sink needed?", **options)
    found = [pair for pair in pairs if pair is not None]
    statement: Statement = "could not be judged"
    if len(found) == len(pairs) and all(pair.enough for pair in found):
        statement = "proven" if all(pair.upper < margin for pair in found) else "not proven"
    return {
        "schema": SCHEMA,
        "statement": statement,
        "sentences": sentences(statement, found, needed, cache, margin, results),
        "margin": margin,
        "cache_size": cache.size,
        "model": results.record["model"]["name"],
        "text": results.record["text"]["name"],
        "comparisons": [pair.to_dict(pair.upper < margin) for pair in found],
        "needed": None if needed is None else needed.to_dict(needed.lower > margin),
        "settings": {"cache": str(cache), "against": str(against), "resamples": resamples, "seed": seed},
    }


def sentences(
    statement: Statement,
    found: list[Comparison],
    needed: Comparison | None,
    cache: CacheSpec,
    margin: float,
    results: Results,
) -> list[str]:
    """Three plain sentences: the statement, the differences it rests on, what happens without the sink."""
    subject = f"{_sinks(cache.sinks)} (cache {cache})"
    where = f"on {results.record['text']['tokens']:,} tokens of {results.record['text']['name']}"
    percent = f"{100 * math.expm1(margin):.2g}%"
    first = {
        "proven": f"Proven: {where}, {subject} costs less than {percent} of perplexity.",
        "not proven": f"Not proven: {where}, {subject} may cost {percent} of perplexity or more.",
        "could not be judged": f"Could not be judged: {where}, {_missing(found, results)}.",
    }[statement]
    parts = [_in_words(pair, margin) for pair in found]
    second = f"Its perplexity differs {'; '.join(parts)}." if parts else "No difference could be measured."
    return [first, second, _need_in_words(needed, margin)]


def _missing(found: list[Comparison], results: Results) -> str:
    """Why there is no verdict, and the option of `sinktrain evaluate` that gives one."""
    if "recompute" not in results.nll:
        return "recompute was not measured (evaluate with --recompute 400)"
    few = [pair for pair in found if not pair.enough]
    if few:
        option = "--recompute" if few[0].b == "recompute" else "--tokens"
        return (
            f"{few[0].tokens:,} tokens are too few to compare {few[0].a} with {few[0].b} (evaluate with more {option})"
        )
    return "some NLLs are not finite (evaluate again, and look at the model)"


def _in_words(pair: Comparison, margin: float) -> str:
    """One difference; where the bound misses the margin, whether that is for want of text."""
    text = f"from that of {pair.b} by {_percent(pair.difference)} (at most {_percent(pair.upper)} with 95% confidence)"
    if pair.upper >= margin and pair.lower > 0:
        return f"{text}, so it is worse on these {pair.tokens:,} tokens"
    if pair.upper >= margin:
        # The bound would meet the margin if the true difference were 0: its distance shrinks with the root of n.
        wanted = pair.tokens * ((pair.upper - pair.difference) / margin) ** 2
        return f"{text}, which {pair.tokens:,} tokens cannot tell from 0 (about {_round_up(wanted)} could)"
    return text


def _need_in_words(needed: Comparison | None, margin: float) -> str:
    if needed is None:
        return "Whether the sink is needed was not measured."
    change = f"perplexity changes by {_percent(needed.difference)} (at least {_percent(needed.lower)})"
    is_needed = "The sink is needed" if needed.lower > margin else "The sink is not shown to be needed"
    return f"{is_needed}: without it (cache {needed.a}), {change}."


def _round_up(value: float) -> str:
    """Two significant digits, upwards."""
    unit = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return f"{math.ceil(value / unit) * unit:,}"


def _sinks(count: int) -> str:
    names = {0: "no sink", 1: "one sink", 2: "two sinks", 4: "four sinks"}
    return names.get(count, f"{count} sinks")


def _percent(nats: float) -> str:
    return f"{100 * math.expm1(min(nats, 20.0)):+.2f}%"
