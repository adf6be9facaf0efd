"""The verb `evaluate`: the grid of caches."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.secrets import command_line
from sinktrain.base.terminal import progress, say
from sinktrain.evaluation.attention import attention_to_first
from sinktrain.evaluation.grid import Row, full_cache, parse_caches, recompute_row, stream_row
from sinktrain.evaluation.results import SCHEMA, environment, write_results
from sinktrain.evaluation.rules import first_with_sinks, in_words, second_rule
from sinktrain.evaluation.subject import ModelOptions, Subject, Text, load_subject, load_text
from sinktrain.evaluation.tasks import evaluate_tasks
from sinktrain.streaming import CacheSpec, PositionRule


def evaluate(
    model: ModelOptions,
    out: Path,
    text: str | None = None,
    caches: str = "0+256 1+255 4+252",
    tokens: int = 8192,
    skip: int = 0,
    recompute: int = 256,
    rule: PositionRule = "cache",
    both_rules: bool = False,
    chunk: int = 512,
    batch: int = 8,
    attention: bool = True,
    tasks: str | None = None,
    task_folder: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Streams a text through a model under several caches and writes the NLL of every token.

    Args:
        model: The model to evaluate.
        out: The result folder to write.
        text: A folder made by `sinktrain prepare` (its validation part is taken), or a source of text as `sinktrain
            prepare --source` takes it.
        caches: The caches to compare, x+y each (x sinks and the y most recent tokens), or `dense` for no eviction.
        tokens: How many tokens of the text to stream.
        skip: How many tokens of the text to leave out first.
        recompute: At how many positions to recompute a window of C tokens afresh, the quality reference; 0 for none.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        both_rules: Also stream the first cache that has sinks under the other rule and say what `original` costs.
        chunk: How many tokens to run at once; the result is the same for all.
        batch: How many recomputed windows to run at once.
        attention: Also measure the attention on the first position, by layer and head.
        tasks: Instead of a text, tasks of EleutherAI's evaluation harness, separated by commas, with the sinks in front
            of every window (`pip install sinktrain[eval]`); what follows from a text is not for them.
        task_folder: With the YAML files of tasks of your own.
        limit: How many examples of each task to take; all without it.
        seed: Of the choice of recomputed positions.
        overwrite: Replace an existing result folder.

    Returns:
        The result folder.
    """
    if (text is None) == (tasks is None):
        raise UserError("--text: is missing; name a text, or tasks by --tasks, and not both.")
    if tasks is not None:
        return evaluate_tasks(model, tasks, task_folder, limit, batch, out, overwrite)
    assert text is not None
    specs = parse_caches(caches)
    at_least("--tokens", tokens, 1)
    at_least("--chunk", chunk, 1)
    at_least("--batch", batch, 1)
    for option, value in (("--skip", skip), ("--recompute", recompute), ("--seed", seed)):
        at_least(option, value, 0)
    sizes = [spec.size for spec in specs if spec.size is not None]
    if not sizes:
        raise UserError(f"--caches {caches!r}: holds no cache that evicts; add one such as 1+255.")
    compared = first_with_sinks(specs, caches) if both_rules else None
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists already; choose another folder, or pass --overwrite true.")
    subject = load_subject(model)
    material = load_text(text, subject.tokenizer, tokens, skip)
    size = max(sizes)
    if len(material.tokens) < 2 * size:
        raise UserError(f"--tokens {tokens}: too few to fill a cache of {size} and judge it; give {2 * size} or more.")
    _warn(subject, specs, size)
    rows = _measure(subject, material, specs, size, rule=rule, chunk=chunk, recompute=recompute, batch=batch, seed=seed)
    full = full_cache(len(material.tokens), len(subject.sink_ids), size)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": command_line(),
        "model": subject.description,
        "text": material.description,
        "cache_size": size,
        "rule": rule,
        "rows": [row.summary(full) for row in rows],
        "attention": attention_to_first(subject, material) if attention else None,
        "environment": environment(),
    }
    if compared is not None:
        second, record["position_rules"] = second_rule(subject, material, compared, rows, size, rule=rule, chunk=chunk)
        rows.append(second)
    write_results(out, record, rows, overwrite=overwrite)
    _show(record)
    say(f"results: {out}")
    return out


def _measure(
    subject: Subject,
    text: Text,
    specs: list[CacheSpec],
    size: int,
    *,
    rule: PositionRule,
    chunk: int,
    recompute: int,
    batch: int,
    seed: int,
) -> list[Row]:
    rows = []
    for spec in specs:
        with progress(f"cache {spec}", len(text.tokens)) as advance:
            rows.append(stream_row(subject, text, spec, rule=rule, chunk=chunk, advance=advance))
    if recompute > 0:
        with progress("recompute", recompute) as advance:
            rows.append(recompute_row(subject, text, size, recompute, seed=seed, batch=batch, advance=advance))
    return rows


def _warn(subject: Subject, specs: list[CacheSpec], size: int) -> None:
    length = subject.description["trained_length"]
    if length is not None and size > length:
        say(f"warning: the cache holds {size} positions, the model was trained for {length}.")
    trained = len(subject.sink_ids)
    for spec in specs:
        if 0 < spec.sinks < trained:
            say(f"warning: cache {spec} keeps fewer than the {trained} trained sinks, which is worse than no sink.")


def _show(record: dict[str, Any]) -> None:
    """The table on the terminal."""
    say(f"{'cache':>10} {'tokens':>8} {'PPL all':>10} {'PPL full cache':>15}   95% interval")
    for row in record["rows"]:
        low, high = (exp(value) for value in row["interval"])
        say(
            f"{row['name']:>10} {row['tokens']:>8} {row['ppl_all']:>10.3f} {row['ppl_full_cache']:>15.3f}   "
            f"{low:.3f} to {high:.3f}"
        )
    if "position_rules" in record:
        say(in_words(record["position_rules"]))
