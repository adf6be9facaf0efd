"""The verb `verify`: the verdict, as words, a table, JSON and an exit status."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.records import as_json
from sinktrain.base.secrets import command_line
from sinktrain.base.terminal import say
from sinktrain.evaluation.family import judge_family, read_grid
from sinktrain.evaluation.grid import parse_caches
from sinktrain.evaluation.wording import percent, unsigned

EXIT_STATUS = {"proven": 0, "not proven": 1, "could not be judged": 2}


def verify(
    results: Path,
    out: Path | None = None,
    cache: str = "1+255",
    against: str = "4+252",
    margin: float = math.log(1.01),
    groups: str | None = None,
    resamples: int = 5000,
    seed: int = 0,
) -> int:
    """Says whether one sink is enough, from the results of `sinktrain evaluate`.

    The exit status is 0 when it is proven, 1 when it is not, 2 when it could not be judged. Of a grid of several
    models or texts, each group of models and each text gets a verdict, and all must be proven.

    Args:
        results: A folder of `sinktrain evaluate` that holds both caches, recompute, and 0+C: one result, or a grid.
        out: The JSON file to write; verdict.json inside the result folder when not given.
        cache: The cache whose sufficiency is in question; several, and each gets a verdict.
        against: The cache of the same size with more sinks; several, and it must be as good as each.
        margin: The largest difference in NLL that counts as none, in nats a token; the default is ln 1.01, one percent
            of perplexity.
        groups: The groups of a grid's models to judge, separated by commas; all without it.
        resamples: How often the bootstrap draws the text anew; at least 20 times for each verdict of a grid.
        seed: Of the bootstrap's draws.

    Returns:
        The exit status.
    """
    if not 0 < margin < math.inf:
        raise UserError(f"--margin {margin}: must be above 0; the default is ln 1.01.")
    at_least("--resamples", resamples, 100)
    at_least("--seed", seed, 0)
    record = judge_family(
        read_grid(results, groups), parse_caches(cache, "--cache"), parse_caches(against, "--against"),
        margin=margin, resamples=resamples, seed=seed,
    )  # fmt: skip
    target = out or results / "verdict.json"
    _write(target, {**record, "command": command_line()})
    for sentence in record["sentences"]:
        say(sentence)
    for line in table(record):
        say(line)
    say(f"verdict: {target}")
    return EXIT_STATUS[record["statement"]]


def _write(target: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    draft = target.with_name(f".{target.name}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(as_json(record))
        os.replace(draft, target)  # noqa: PTH105
    except OSError as error:
        raise UserError(f"--out {target}: cannot be written ({error.strerror}); choose another file.") from error


def table(record: dict[str, Any]) -> list[str]:
    """A line a comparison, differences as those of perplexity; `seen` is `smallest_difference`."""
    verdicts = record["verdicts"] or [record]
    many = len(verdicts) > 1
    header = ["caches", "tokens", "difference", "95% interval", "bound", "p", "seen", "holds"]
    rows = [["model", "text", *header[:-1], "Holm's p", header[-1]] if many else header]
    for verdict in verdicts:
        names = [verdict["model"], verdict["text"]] if many else []
        holm = "-" if verdict["p_holm"] is None else f"{verdict['p_holm']:.4f}"  # of the verdict, not of the row
        lines = [(pair, f"<= {percent(pair['upper'])}", holm) for pair in verdict["comparisons"]]
        if (needed := verdict["needed"]) is not None:
            lines.append((needed, f">= {percent(needed['lower'])}", "-"))
        for pair, bound, p in lines:
            *cells, holds = _cells(pair, bound)
            rows.append([*names, *cells, *([p] if many else []), holds])
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _cells(pair: dict[str, Any], bound: str) -> list[str]:
    low, high = pair["interval"]
    return [
        f"{pair['a']} - {pair['b']}",
        f"{pair['tokens']:,}",
        percent(pair["difference"]),
        f"{percent(low)} to {percent(high)}",
        bound,
        f"{pair['p_value']:.4f}",
        unsigned(pair["smallest_difference"]),
        ("yes" if pair["holds"] else "no") if pair["enough"] else "too few",
    ]
