"""The verdict: is one sink enough, by how much at most is it worse, and is it needed at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sinktrain.base.errors import UserError
from sinktrain.evaluation.comparison import FEWEST_BLOCKS, FEWEST_TOKENS, Comparison, compare
from sinktrain.evaluation.results import Results
from sinktrain.evaluation.statistics.interval import ALPHA, POWER
from sinktrain.evaluation.wording import Subject, sentences, sinks
from sinktrain.streaming import CacheSpec

__all__ = ["FEWEST_BLOCKS", "FEWEST_TOKENS", "SCHEMA", "Statement", "judge", "judge_models"]

SCHEMA = 2
Statement = Literal["proven", "not proven", "could not be judged"]
WITHIN = (
    "The verdict holds only if all of its comparisons do: an intersection-union test, whose error is at most that of "
    "one comparison, so nothing is corrected for their number (Berger 1982)."
)


def judge(
    results: Results, cache: CacheSpec, against: CacheSpec, *, margin: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The verdict on one model and text; see `judge_models`."""
    return judge_models([results], cache, [against], margin=margin, resamples=resamples, seed=seed)


def judge_models(
    models: Sequence[Results],
    cache: CacheSpec,
    against: Sequence[CacheSpec],
    *,
    margin: float,
    resamples: int,
    seed: int,
    name: str | None = None,
) -> dict[str, Any]:
    """The verdict as a JSON record (schema 2; verdict.schema.json says what each field means).

    Proven: the one-sided upper 95% bound of the mean paired difference in NLL, `cache` minus each of `against`, is
    below `margin`, and so is that of `cache` minus recompute. Needed: the lower 95% bound of 0+C minus `cache` is above
    it.

    Args:
        models: results of `sinktrain evaluate` on one text, of models that differ in their seed only, with the rows
            `cache`, `against`, recompute for its size, and 0+C if `needed` is asked.
        cache: the cache whose sufficiency is in question, such as 1+255.
        against: caches of the same size with more sinks, such as 4+252.
        margin: the largest difference in NLL that counts as none, in nats a token.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        name: of the models together; the first one's own when None.

    Raises:
        UserError: the caches differ in size, or the results do not hold them, or are not alike.
    """
    _check(models, cache, against)
    options: dict[str, Any] = {"margin": margin, "resamples": resamples, "seed": seed}
    one = str(cache)
    found: list[Comparison | str] = [
        compare(models, one, str(more), f"Is {sinks(cache)} as good as {sinks(more)}?", **options) for more in against
    ]
    fresh = "recompute" if cache.size == models[0].size else f"recompute {cache.size}"
    found.append(compare(models, one, fresh, f"Is {sinks(cache)} as good as recomputing?", **options))
    needed: Comparison | str = f"{one} keeps none"
    if cache.sinks:
        needed = compare(models, f"0+{cache.size}", one, "Is the sink needed?", asks="needed", **options)
    pairs = [pair for pair in found if isinstance(pair, Comparison)]
    missing = [pair for pair in found if isinstance(pair, str)]
    few = [pair for pair in pairs if not pair.enough]
    statement: Statement = "proven" if all(pair.holds for pair in pairs) else "not proven"
    if missing or few:
        statement = "could not be judged"
    first = models[0].record
    subject = Subject(cache, first["text"]["name"], first["text"]["tokens"], name, len(models))
    return {
        "schema": SCHEMA,
        "kind": "verdict",
        "statement": statement,
        "sentences": sentences(subject, statement, pairs, missing, needed, margin),
        "margin": margin,
        "cache_size": cache.size,
        "model": name or first["model"]["name"],
        "text": first["text"]["name"],
        "models": [results.record["model"]["label" if name else "name"] for results in models],
        "comparisons": [pair.to_dict() for pair in pairs],
        "needed": needed.to_dict() if isinstance(needed, Comparison) else None,
        "p_value": max(pair.p_value for pair in pairs) if statement != "could not be judged" else None,
        "multiplicity": {"within": WITHIN},
        "settings": {
            "cache": one,
            "against": " ".join(map(str, against)),
            "resamples": resamples,
            "seed": seed,
            "alpha": ALPHA,
            "power": POWER,
        },
    }


def _check(models: Sequence[Results], cache: CacheSpec, against: Sequence[CacheSpec]) -> None:
    """Refuses questions that the results cannot answer."""
    for more in against:
        if cache.size is None or cache.size != more.size:
            raise UserError(f"--against {more}: must hold as many positions as --cache {cache}; change one of them.")
        if more.sinks <= cache.sinks:
            enough = max(4, cache.sinks + 1)
            hint = f"; try {enough}+{cache.size - enough}" if cache.size > enough else ""
            raise UserError(f"--against {more}: must keep more sinks than --cache {cache}{hint}.")
    first = models[0]
    for results in models:
        for spec in (cache, *against):
            if str(spec) not in results.nll:
                raise UserError(f"--results: holds no cache {spec}; run `sinktrain evaluate --caches` with it.")
        if results.record["text"].get("sha256") != first.record["text"].get("sha256") or (
            results.full_cache().shape != first.full_cache().shape
        ):
            names = f"{results.record['model']['name']} and {first.record['model']['name']}"
            raise UserError(
                f"--results: {names} are of one group and were not measured on the same tokens; "
                "evaluate them together, with one tokenizer."
            )
