"""The verb `recall`: what is remembered of a fact, by its distance and the size of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.terminal import progress, say
from sinktrain.evaluation.recall.asking import asked, unsaid, work
from sinktrain.evaluation.recall.common import check_room, choose_caches, numbers, parts, record, warn, write
from sinktrain.evaluation.recall.facts import DIGITS, Fact, Layout, lay_out, make_facts, needed_filler
from sinktrain.evaluation.recall.feeding import Score
from sinktrain.evaluation.recall.intervals import STUDENT, WILSON, accuracy, of_mean, wilson
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.evaluation.texts import Text, load_text
from sinktrain.streaming import CacheSpec, PositionRule

FILE = "recall.json"
SIZES = (128, 256, 512)
PREAMBLE = 32
"""Tokens of text before a fact, beyond the sinks."""


def recall(
    model: ModelOptions,
    out: Path,
    text: str = "stdlib",
    caches: str | None = None,
    distances: str | None = None,
    facts: int = 20,
    rule: PositionRule = "cache",
    chunk: int = 256,
    batch: int = 10,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Tells a model a fact, then so many tokens of a text, and asks for it: recall by distance and by cache.

    The fact is a number of five digits, which the model is asked for at every distance, from the same stream. A fact
    has left the cache x+y when its distance is above y. All caches are asked for the same facts in the same text.

    Args:
        model: The model to evaluate; it need not be tuned to chat.
        out: The result folder to write.
        text: What stands between fact and question: a folder made by `sinktrain prepare` (its validation part is
            taken), or a source of text as `sinktrain prepare --source` takes it.
        caches: The caches to compare, x+y each (x sinks and the y most recent tokens), or `dense` for no eviction. By
            default the model's sinks (4 for a model without) in 128, 256 and 512 positions, and dense.
        distances: In tokens, from the answer back to the number. By default an eighth, a quarter, half and all of
            the recent tokens of each cache, one more than these, and twice as many.
        facts: How many facts, each in a stream of its own.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        chunk: How many tokens of a stream to run at once; the result is the same for all.
        batch: How many streams to run side by side.
        seed: Of the facts.
        overwrite: Replace an existing result folder.

    Returns:
        The result folder.
    """
    for option, value, least in (("facts", facts, 2), ("chunk", chunk, 1), ("batch", batch, 1)):
        at_least(f"--{option}", value, least)
    at_least("--seed", seed, 0)
    chosen = None if distances is None else numbers(distances, "--distances", 1)
    with new_folder(out, "--out", overwrite=overwrite, reads=[model.name, text]) as draft:
        subject = load_subject(model)
        specs = choose_caches(subject, caches, SIZES)
        made = make_facts(subject, facts, seed)
        check_room(specs, max(fact.least for fact in made), "a fact with its question")
        chosen = chosen or _default_distances(specs, max(fact.least for fact in made))
        preamble = PREAMBLE + max(spec.sinks for spec in specs)
        filler, layouts = _layouts(subject, text, made, chosen, preamble, batch)
        warn(subject, specs, max(layout.question_at(chosen[-1]) for layout in layouts))
        rows, chance = _measure(subject, specs, layouts, chosen, rule=rule, chunk=chunk)
        fields = {
            "text": filler.description, "facts": facts, "distances": chosen, "digits": DIGITS, "rule": rule,
            "seed": seed, "chance": chance, "interval_method": {"accuracy": WILSON, "nll": STUDENT},
            "rows": [{**row, "chance": chance} for row in rows],
        }  # fmt: skip
        write(draft, FILE, record("recall", subject, fields))
    say(f"{'never said':>10}                          {chance:6.2f} nats a number")
    say(f"results: {out}")
    return out


def _default_distances(specs: list[CacheSpec], least: int) -> list[int]:
    """Log-spaced across each cache and beyond its end, none below `least`."""
    ends = [spec.recent for spec in specs if spec.recent is not None]
    if not ends:
        raise UserError("--distances: is missing; give some, since only a cache that evicts tells which to take.")
    found = {each for y in ends for each in (y // 8, y // 4, y // 2, y, y + 1, 2 * y)}
    return sorted(each for each in found if each >= least)


def _layouts(
    subject: Subject, text: str, facts: list[Fact], distances: list[int], preamble: int, batch: int
) -> tuple[Text, list[Layout]]:
    """The facts in batches, each in its own piece of the text."""
    each = needed_filler(facts, distances, preamble)
    needed = each * len(facts)
    try:
        filler = load_text(text, subject.tokenizer, needed)
    except UserError as error:
        if "tokens after skip" not in str(error):
            raise
        raise UserError(
            f"--text {text}: has fewer than the {needed} tokens that {len(facts)} facts up to {distances[-1]} tokens "
            "away need; give a longer one, fewer --facts, or smaller --distances."
        ) from error
    pieces = filler.tokens.reshape(len(facts), each).tolist()
    layouts = [
        lay_out(subject, list(part), list(rows), distances, preamble)
        for part, rows in zip(parts(facts, batch), parts(pieces, batch), strict=True)
    ]
    return filler, layouts


def _measure(
    subject: Subject,
    specs: list[CacheSpec],
    layouts: list[Layout],
    distances: list[int],
    *,
    rule: PositionRule,
    chunk: int,
) -> tuple[list[dict[str, Any]], float]:
    """The rows of all caches, and the mean NLL of a number that was never said."""
    rows: list[dict[str, Any]] = []
    total = sum(work(layout) for layout in layouts) * len(specs)
    with progress("recall", total) as advance:
        never = [each.nll for layout in layouts for each in unsaid(subject, layout, chunk)]
        for spec in specs:
            found: dict[int, list[tuple[Score, Score]]] = {distance: [] for distance in distances}
            for layout in layouts:
                for distance, scores in asked(subject, spec, layout, rule=rule, chunk=chunk, advance=advance).items():
                    found[distance] += scores
            for distance, pairs in found.items():
                rows.append(_row(spec, distance, pairs))
                say(_words(rows[-1]))
    return rows, float(np.mean(never))


def _row(spec: CacheSpec, distance: int, pairs: list[tuple[Score, Score]]) -> dict[str, Any]:
    """The figures of one cache at one distance."""
    right = sum(said.right for said, _ in pairs)
    nll = np.array([said.nll for said, _ in pairs])
    other = np.array([never.nll for _, never in pairs])
    return {
        "cache": str(spec),
        "distance": distance,
        "in_cache": spec.recent is None or distance <= spec.recent,
        **accuracy(right, len(pairs), wilson(right, len(pairs))),
        "nll": float(nll.mean()),
        "nll_interval": of_mean(nll),
        "gain": float((other - nll).mean()),
        "gain_interval": of_mean(other - nll),
    }


def _words(row: dict[str, Any]) -> str:
    low, high = row["gain_interval"]
    where = "" if row["in_cache"] else "; has left the cache"
    return (
        f"{row['cache']:>10}, {row['distance']:>6} tokens: {row['right']:>3} of {row['asked']}, {row['nll']:6.2f} nats "
        f"a number, {row['gain']:+.2f} ({low:+.2f} to {high:+.2f}) better than one never said{where}"
    )
