"""The verb `stream-eval`: StreamEval of the StreamingLLM paper (arXiv 2309.17453, Figures 8 and 9, Table 7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sinktrain.base.errors import at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.terminal import progress, say
from sinktrain.evaluation.recall.common import check_room, choose_caches, numbers, parts, record, warn, write
from sinktrain.evaluation.recall.feeding import Answer, Score, Streams, padded, score
from sinktrain.evaluation.recall.intervals import CLUSTERED, accuracy, clustered
from sinktrain.evaluation.recall.lines import Sample, make_sample
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.streaming import CacheSpec, PositionRule

FILE = "streameval.json"
SIZES = (512, 1024)


def stream_eval(
    model: ModelOptions,
    out: Path,
    caches: str | None = None,
    line_distances: str = "1 20 40 60",
    samples: int = 4,
    queries: int = 10,
    every: int = 10,
    names: Literal["numbers", "words"] = "numbers",
    rule: PositionRule = "cache",
    chunk: int = 256,
    batch: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Asks for lines that a stream of lines said some time ago: StreamEval, as the StreamingLLM paper describes it.

    Each line says a number. Every 10 lines comes a query for the number of the line so many lines earlier, and it is
    right when greedy decoding would write exactly that number; the stream goes on with the right one. The full protocol
    of the paper is --samples 100 --queries 100 --line_distances '20 40 60 80 100' --caches '4+2044'.

    Args:
        model: The model to evaluate.
        out: The result folder to write.
        caches: The caches to compare, x+y each (x sinks and the y most recent tokens), or `dense` for no eviction. By
            default the model's sinks (4 for a model without) in 512 and in 1024 positions, and dense.
        line_distances: How many lines back to ask for, one stream for each; 1 with a dense cache tells what the model
            can do at all.
        samples: How many streams of each distance.
        queries: How many queries a stream.
        every: How many lines between two queries.
        names: What lines are called: their `numbers`, as in the paper, or `words`, which small models tell apart
            better.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        chunk: How many tokens of a stream to run at once; the result is the same for all.
        batch: How many streams to run side by side.
        seed: Of the numbers.
        overwrite: Replace an existing result folder.

    Returns:
        The result folder.
    """
    distances = numbers(line_distances, "--line_distances", 0)
    for option, value in (("samples", samples), ("queries", queries), ("every", every), ("chunk", chunk),
                          ("batch", batch)):  # fmt: skip
        at_least(f"--{option}", value, 1)
    at_least("--seed", seed, 0)
    with new_folder(out, "--out", overwrite=overwrite, reads=[model.name]) as draft:
        subject = load_subject(model)
        specs = choose_caches(subject, caches, SIZES)
        streams = {
            distance: [
                make_sample(
                    subject, seed, number, distance=distance, queries=queries, every=every, words=names == "words"
                )
                for number in range(samples)
            ]
            for distance in distances
        }
        check_room(specs, _line(subject), "a line with its query")
        warn(subject, specs, max(len(sample.ids) for found in streams.values() for sample in found))
        work = sum(len(sample.ids) for found in streams.values() for sample in found) * len(specs)
        rows = []
        with progress("StreamEval", work) as advance:
            for spec in specs:
                for distance, found in streams.items():
                    scores = _answers(subject, spec, found, rule=rule, chunk=chunk, batch=batch, advance=advance)
                    rows.append(_row(spec, distance, found, scores, queries))
                    say(_words(rows[-1]))
        fields = {"samples": samples, "queries": queries, "every": every, "names": names, "rule": rule, "seed": seed}
        write(draft, FILE, record("streameval", subject, {**fields, "interval_method": CLUSTERED, "rows": rows}))
    say(f"results: {out}")
    return out


def _line(subject: Subject) -> int:
    """Tokens that must be in view to answer about the line just before."""
    sample = make_sample(subject, 0, 0, distance=0, queries=1, every=1)
    return sample.queries[0].end - sample.queries[0].fact


def _answers(
    subject: Subject,
    spec: CacheSpec,
    samples: list[Sample],
    *,
    rule: PositionRule,
    chunk: int,
    batch: int,
    advance: Callable[[float], None],
) -> list[Score]:
    """The score of every query of every sample, in order."""
    found: list[Score] = []
    for part in parts(samples, batch):
        tokens = padded([sample.ids for sample in part])
        streams = Streams.open(subject, spec, tokens.shape[1], rule=rule, chunk=chunk, advance=advance)
        answers = [Answer(row, each.start, each.end) for row, sample in enumerate(part) for each in sample.queries]
        found += score(streams, tokens, answers)
    return found


def _row(spec: CacheSpec, distance: int, samples: list[Sample], scores: list[Score], queries: int) -> dict[str, Any]:
    """The figures of one cache at one distance."""
    away = [query.distance for sample in samples for query in sample.queries]
    right = [sum(each.right for each in part) for part in parts(scores, queries)]
    return {
        "cache": str(spec),
        "line_distance": distance,
        "token_distance": round(sum(away) / len(away)),
        "in_cache": sum(spec.recent is None or each <= spec.recent for each in away),
        **accuracy(sum(right), len(scores), clustered(right, queries)),
        "nll": sum(each.nll for each in scores) / len(scores),
    }


def _words(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return (
        f"{row['cache']:>10}, {row['line_distance']:>4} lines ({row['token_distance']:>5} tokens) back: "
        f"{row['right']:>4} of {row['asked']} right, {row['accuracy']:.0%} ({low:.0%} to {high:.0%}); "
        f"{row['nll']:.2f} nats a number; {row['in_cache']} still in the cache"
    )
