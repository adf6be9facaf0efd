"""The three sentences of a verdict: the statement, the differences it rests on, what happens without the sink."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sinktrain.evaluation.comparison import Comparison
from sinktrain.streaming import CacheSpec


@dataclass(frozen=True)
class Subject:
    """What a verdict is about.

    Args:
        cache: in question.
        text: its name.
        tokens: of the text.
        group: what the models are called together; None for a single one.
        seeds: how many models there are.
    """

    cache: CacheSpec
    text: str
    tokens: int
    group: str | None = None
    seeds: int = 1

    def where(self) -> str:
        """`for 3 seeds of token, on 8,192 tokens of stdlib`."""
        models = "" if self.group is None else f"for {self.group}, "
        if self.seeds > 1:
            models = f"for {self.seeds} seeds of {self.group or 'the model'}, "
        return f"{models}on {self.tokens:,} tokens of {self.text}"


def sentences(
    subject: Subject,
    statement: str,
    pairs: Sequence[Comparison],
    missing: Sequence[str],
    needed: Comparison | str,
    margin: float,
) -> list[str]:
    """Three plain sentences.

    Args:
        subject: what was judged.
        statement: the verdict.
        pairs: the comparisons it rests on.
        missing: why others could not be made.
        needed: the comparison with no sink, or why there is none.
        margin: in nats a token.
    """
    name = f"{sinks(subject.cache)} (cache {subject.cache})"
    share = f"{100 * math.expm1(margin):.2g}%"
    if statement == "proven":
        first = f"Proven: {subject.where()}, {name} costs less than {share} of perplexity."
    elif statement == "not proven":
        first = f"Not proven: {subject.where()}, {name} may cost {share} of perplexity or more."
    else:
        first = f"Could not be judged: {subject.where()}, {_missing(pairs, missing)}."
    parts = [_in_words(pair) for pair in pairs]
    second = f"Its perplexity differs {'; '.join(parts)}." if parts else "No difference could be measured."
    return [first, second, _need_in_words(needed)]


def _missing(pairs: Sequence[Comparison], missing: Sequence[str]) -> str:
    """Why there is no verdict, and the option of `sinktrain evaluate` that gives one."""
    if missing:
        return missing[0]
    pair = next(pair for pair in pairs if not pair.enough)
    option = "--recompute" if pair.b.startswith("recompute") else "--tokens"
    return f"{pair.found.tokens:,} tokens are too few to compare {pair.a} with {pair.b} (evaluate with more {option})"


def _in_words(pair: Comparison) -> str:
    """One difference and the smallest that could have been seen; where the bound misses the margin, why."""
    found = pair.found
    text = (
        f"from that of {pair.b} by {percent(found.mean)} (at most {percent(found.upper)} with 95% confidence; "
        f"the smallest difference that could have been seen is {unsigned(found.smallest_difference)})"
    )
    if pair.holds:
        return text
    if found.lower > 0:
        return f"{text}, so it is worse on these {found.tokens:,} tokens"
    wanted = found.tokens_wanted(pair.margin)
    if wanted is None:
        return f"{text}, which {found.seeds} seeds cannot tell from 0 (more seeds could, more text could not)"
    if wanted <= found.tokens:
        return f"{text}, although {found.tokens:,} tokens prove a difference of 0 in four of five tries"
    return f"{text}, which {found.tokens:,} tokens cannot tell from 0 (about {_round_up(wanted)} could)"


def _need_in_words(needed: Comparison | str) -> str:
    if isinstance(needed, str):
        return "Whether the sink is needed was not measured."
    found = needed.found
    change = f"perplexity changes by {percent(found.mean)} (at least {percent(found.lower)})"
    is_needed = "The sink is needed" if needed.holds else "The sink is not shown to be needed"
    return f"{is_needed}: without it (cache {needed.a}), {change}."


def _round_up(value: float) -> str:
    """Two significant digits, upwards."""
    unit = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return f"{math.ceil(value / unit) * unit:,}"


def sinks(cache: CacheSpec) -> str:
    """`one sink` for 1+255."""
    names = {0: "no sink", 1: "one sink", 2: "two sinks", 4: "four sinks"}
    return names.get(cache.sinks, f"{cache.sinks} sinks")


def percent(nats: float) -> str:
    """A difference in NLL as one of perplexity, with its sign."""
    return f"{100 * math.expm1(min(nats, 20.0)):+.2f}%"


def unsigned(nats: float) -> str:
    """The same without the sign."""
    return percent(nats).lstrip("+")
