"""One cache against another: the paired difference in NLL, token by token, with its bounds, p-values and power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sinktrain.evaluation.results import Results
from sinktrain.evaluation.statistics import Interval, estimate_over_seeds
from sinktrain.evaluation.statistics.interval import ALPHA
from sinktrain.evaluation.statistics.mean import FEWEST_DOCUMENTS

FEWEST_TOKENS = 200
FEWEST_BLOCKS = 20


@dataclass(frozen=True)
class Comparison:
    """The paired difference in NLL, a minus b, over the tokens that both predicted with a full cache.

    Args:
        a: a cache.
        b: another, or `recompute` (with C behind it where it is not the largest).
        question: what is asked, in words.
        asks: whether a is `as good` as b (its upper bound is below the margin), or b is `needed` because a is worse
            than the margin (its lower bound is above it).
        found: the mean difference, in nats a token.
        margin: the largest difference that counts as none, in nats a token.
    """

    a: str
    b: str
    question: str
    asks: Literal["as good", "needed"]
    found: Interval
    margin: float

    @property
    def enough(self) -> bool:
        """Whether there are tokens enough, and units of them that do not depend on each other, to say anything."""
        blocks = self.found.tokens >= FEWEST_BLOCKS * self.found.block_length
        return self.found.tokens >= FEWEST_TOKENS and blocks

    @property
    def p_value(self) -> float:
        """Of the opposite of what is hoped: a is worse by the margin or more; or, for `needed`, by no more than it."""
        return self.found.p_below(self.margin) if self.asks == "as good" else self.found.p_above(self.margin)

    @property
    def holds(self) -> bool:
        """Whether it came out as the question hopes, by the one-sided 95% bound."""
        return self.found.upper < self.margin if self.asks == "as good" else self.found.lower > self.margin

    @property
    def p_equivalence(self) -> float:
        """Of two one-sided tests (Schuirmann 1987): that the difference is the margin or more, in either direction."""
        return max(self.found.p_below(self.margin), self.found.p_above(-self.margin))

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON record; verdict.schema.json says what each field means."""
        found = self.found
        wanted = found.tokens_wanted(self.margin)
        return {
            "a": self.a,
            "b": self.b,
            "question": self.question,
            "tokens": found.tokens,
            "difference": found.mean,
            "interval": [found.low, found.high],
            "lower": found.lower,
            "upper": found.upper,
            "block_length": found.block_length,
            "enough": self.enough,
            "holds": self.holds,
            "p_value": self.p_value,
            "equivalent": self.p_equivalence <= ALPHA,
            "p_equivalence": self.p_equivalence,
            "standard_error": found.standard_error,
            "smallest_difference": found.smallest_difference,
            "tokens_wanted": None if wanted is None else int(np.ceil(wanted)),
            "resampled": found.resampled,
            "why_resampled": _why(found),
            "units": found.units,
            "documents": found.documents,
            "effective_documents": found.effective_documents,
            "seeds": found.seeds,
            "degrees_of_freedom": found.df,
        }


def compare(
    models: Sequence[Results],
    a: str,
    b: str,
    question: str,
    *,
    margin: float,
    asks: Literal["as good", "needed"] = "as good",
    resamples: int,
    seed: int,
) -> Comparison | str:
    """Compares two caches token by token, averaged over models that differ in their seed only.

    Returns:
        The comparison; or, where there is none, why: words that go on with "could not be judged:".
    """
    for name in (a, b):
        if any(name not in results.nll for results in models):
            hint = " (evaluate with --recompute 400)" if name.startswith("recompute") else ""
            return f"{name} was not measured{hint}"
    counted = np.logical_and.reduce([results.full_cache() for results in models])
    for name in (a, b):
        if name.startswith("recompute"):  # at a sample of positions; a NaN elsewhere is one of the model's
            counted &= np.logical_and.reduce([np.isfinite(results.nll[name]) for results in models])
    if not counted.any():
        return f"no token was predicted by both {a} and {b} with a full cache (evaluate with more --tokens)"
    for name in (a, b):
        broken = sum(int((~np.isfinite(results.nll[name][counted])).sum()) for results in models)
        if broken:
            return f"{broken:,} NLLs of {name} are not finite (evaluate again, and look at the model)"
    series = np.stack([(results.nll[a] - results.nll[b])[counted] for results in models])
    found = estimate_over_seeds(series, models[0].documents[counted], resamples=resamples, seed=seed)
    return Comparison(a, b, question, asks, found, margin)


def _why(found: Interval) -> str:
    """Why blocks or documents were resampled, and how seeds come in."""
    if found.resampled == "documents":
        text = f"{found.documents:,} documents, which tell as much as {found.effective_documents:.3g} of equal length"
    elif found.documents == 1:
        text = f"one document, so blocks of {found.block_length:,} tokens, a length chosen from its autocorrelation"
    else:
        text = (
            f"{found.documents:,} documents, which tell as much as {found.effective_documents:.3g} of equal length, "
            f"fewer than {FEWEST_DOCUMENTS}, so blocks of {found.block_length:,} tokens inside them: what is said is "
            "said of these documents"
        )
    if found.seeds > 1:
        text += f"; {found.seeds} seeds, crossed with the text, by a t instead of a bootstrap because they are few"
    return text
