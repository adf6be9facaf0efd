"""The verb `verify`: the verdict, as words, JSON and an exit status."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import read_results
from sinktrain.evaluation.verdict import judge
from sinktrain.streaming import CacheSpec

EXIT_STATUS = {"proven": 0, "not proven": 1, "could not be judged": 2}


def verify(
    results: Path,
    out: Path | None = None,
    cache: str = "1+255",
    against: str = "4+252",
    margin: float = math.log(1.01),
    resamples: int = 5000,
    seed: int = 0,
) -> int:
    """Says whether one sink is enough, from the results of `sinktrain evaluate`.

    The exit status is 0 when it is proven, 1 when it is not, 2 when it could not be judged.

    Args:
        results: A result folder of `sinktrain evaluate` that holds both caches, recompute, and 0+C.
        out: The JSON file to write; verdict.json inside the result folder when not given.
        cache: The cache whose sufficiency is in question.
        against: The cache of the same size with more sinks.
        margin: The largest difference in NLL that counts as none, in nats a token; the default is ln 1.01, one percent
            of perplexity.
        resamples: How often the bootstrap draws the text anew.
        seed: Of the bootstrap's draws.

    Returns:
        The exit status.
    """
    if margin <= 0:
        raise UserError(f"--margin {margin}: must be above 0; the default is ln 1.01.")
    at_least("--resamples", resamples, 100)
    at_least("--seed", seed, 0)
    found = read_results(results)
    record = judge(
        found, CacheSpec.parse(cache, "--cache"), CacheSpec.parse(against, "--against"),
        margin=margin, resamples=resamples, seed=seed,
    )  # fmt: skip
    target = out or results / "verdict.json"
    draft = target.with_name(f".{target.name}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(redact(record), indent=1) + "\n")
        os.replace(draft, target)  # noqa: PTH105
    except OSError as error:
        raise UserError(f"--out {target}: cannot be written ({error.strerror}); choose another file.") from error
    for sentence in record["sentences"]:
        say(sentence)
    say(f"verdict: {target}")
    return EXIT_STATUS[record["statement"]]
