"""The two position rules side by side: what counting the distance to the sinks in the text costs.

`cache` counts distances inside the cache (StreamingLLM, arXiv 2309.17453, section 3.2), so a sink is never seen from
farther than the cache is long. `original` counts them in the text, as the MIT News article about the paper describes:
past the trained length a sink is seen from farther away than anything was in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.evaluation.grid import NLL, RULES, Row, full_cache
from sinktrain.evaluation.statistics.mean import estimate
from sinktrain.evaluation.verdict import FEWEST_BLOCKS, FEWEST_TOKENS
from sinktrain.streaming import CacheSpec, PositionRule


def first_with_sinks(specs: list[CacheSpec]) -> CacheSpec:
    """The first cache that keeps sinks: the rules differ in nothing but the distance to them.

    Raises:
        UserError: there is none.
    """
    for spec in specs:
        if spec.method == "streaming":
            return spec
    names = " ".join(map(str, specs))
    raise UserError(f"--caches '{names}': holds no cache with sinks for --both_rules; add one such as 1+255.")


def rules_record(
    rows: list[Row],
    spec: CacheSpec,
    rule: PositionRule,
    size: int,
    sinks: int,
    trained_length: int | None,
    documents: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """What the position rules of one cache cost against each other: `position_rules` of results.json.

    Args:
        rows: the table, in which `spec` stands under both rules: as `1+255` and as `1+255 original`.
        spec: a cache with sinks.
        rule: of the table.
        size: C, at which a cache counts as full.
        sinks: how many stand in front of the text.
        trained_length: of the model, if it says so.
        documents: (T,) the number of each token's document.
    """
    other = RULES[rule]
    name = f"{spec} {other}"
    names = {rule: str(spec), other: name}
    nll = {each: next(row.nll for row in rows if row.name == names[each]).astype(np.float64) for each in names}
    return {
        "cache": str(spec),
        "array": name,
        **compare_rules(nll["cache"], nll["original"], sinks, size, trained_length, documents),
    }


def compare_rules(
    cache: NLL,
    original: NLL,
    sinks: int,
    size: int,
    trained_length: int | None,
    documents: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """What `original` costs against `cache`, in NLL a token, over all tokens with a full cache and past the training.

    A token is past the trained length when its query sees position 0 from at least that far: training on L positions
    shows distances up to L - 1.

    Args:
        cache: (T,) NLL under the rule `cache`, NaN where the token was not predicted.
        original: (T,) the same under the rule `original`.
        sinks: how many sinks stand in front of the text.
        size: C, at which a cache counts as full.
        trained_length: L, positions a training sample; None if the model does not say.
        documents: (T,) the number of each token's document; None for a text that is one.

    Returns:
        `trained_length`, `tokens`, `tokens_past_trained_length`, and under `full_cache` and `past_trained_length` the
        comparison over those tokens, None where there are none.
    """
    tokens = len(cache)
    full = full_cache(tokens, sinks, size) & np.isfinite(cache) & np.isfinite(original)
    past = full & full_cache(tokens, sinks, trained_length) if trained_length else np.zeros_like(full)
    return {
        "trained_length": trained_length,
        "tokens": int(full.sum()),
        "tokens_past_trained_length": int(past.sum()),
        "full_cache": _paired(cache, original, full, documents),
        "past_trained_length": _paired(cache, original, past, documents),
    }


def _paired(
    cache: NLL, original: NLL, counted: NDArray[np.bool_], documents: NDArray[np.int64] | None
) -> dict[str, Any] | None:
    """Both PPLs over the `counted` (T,) tokens and the mean of NLL[original] - NLL[cache] with its 95% interval."""
    if not counted.any():
        return None
    found = estimate(original[counted] - cache[counted], documents=None if documents is None else documents[counted])
    return {
        "tokens": found.tokens,
        "ppl_cache": float(np.exp(cache[counted].mean())),
        "ppl_original": float(np.exp(original[counted].mean())),
        "difference": found.mean,
        "interval": [found.low, found.high],
        "block_length": found.block_length,
        "enough": found.tokens >= max(FEWEST_TOKENS, FEWEST_BLOCKS * found.block_length),
    }


def in_words(record: dict[str, Any]) -> str:
    """The line for the terminal."""
    length, past, full = record["trained_length"], record["past_trained_length"], record["full_cache"]
    if past is not None:
        where, pair = f"on {past['tokens']} tokens past the trained length of {length}", past
    else:
        missing = "no trained length is known" if length is None else f"none past the trained length of {length}"
        where, pair = f"on {full['tokens']} tokens, {missing}", full
    low, high = pair["interval"]
    few = "" if pair["enough"] else "; too few tokens to rely on"
    return (
        f"rule original minus cache, {record['cache']}, {where}: {pair['difference']:+.4f} nats a token "
        f"(95% interval {low:+.4f} to {high:+.4f}{few})"
    )
