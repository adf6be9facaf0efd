"""The verb `diagnose`: a folder with `diagnosis.json` and `maps.npz`.

Layers, heads, positions and dimensions are counted from 0. Position 0 is the model's (first) sink token, or the text's
first token in a model without one; no BOS stands in front. Numbers in the JSON are rounded to 5 digits.

`diagnosis.json` ("schema": 1, "kind": "diagnosis") has command, model, text, environment, `notes` (what was left out
or shows nothing, and why), and

- `sink_metric`, over `sequences` short sequences of `length` positions, sinks included. For each of `places` (`sink`,
  of several `sink_0` ...; `text_1` ... the first tokens of text; `outlet`, of kinds `zero`, `logit`, `kv` and models
  such as gpt-oss): `heads`, Sink_k of Gu et al. (arXiv 2410.10781, section 3.2;
  `sinktrain.evaluation.attention.sink_share` has the definition), `attention`, the mean of their alpha_k, and that
  `by_layer`. For the outlet it is the mean over all queries. `strongest`: [layer, head, alpha] of the heads that give
  most to position 0.
- `maps`: the `sequences` and `length` of the short maps.
- `entropy` of the attention in nats, `mean` over heads, sequences and the queries from 1 on, and `by_layer`; `even`,
  of an attention that gives the same to all it sees.
- `massive_activations`, lists by layer (Sun et al., arXiv 2402.17762, section 2; `sinktrain.evaluation.activations`).
- `norms` of `hidden` states, `keys` and `values`, lists by layer: `first`, at position 0; `others`, the median of the
  text's other tokens; `ratio` of the two (Gu et al., section 3).
- `long`, of one text of `tokens` positions: `dense`, the attention on position 0 (mean over layers and heads) by where
  the query stands, in buckets that begin at `along`, four an octave; `stream`, the same while the text streams through
  `cache` (null if it cannot); `entropy` (dense).

`maps.npz`, float32 but for names and positions:

- `logits`, `probabilities` (layers, heads, T, T) from query to key, T = `map_length`: means over `map_sequences` short
  sequences (StreamingLLM, arXiv 2309.17453, Figures 2 and 7). Logits are what the softmax is taken of, scaled and
  capped; what a query does not see is NaN in them, and 0 in probabilities. With an outlet, `outlet_logits` and
  `outlet_probabilities` (layers, heads, T).
- `long` (layers, bins, bins): the attention from each bin of queries to each bin of keys in the long text, mean over
  heads and queries, summed over keys: rows sum to 1, with `long_outlet` (layers, bins) where there is an outlet.
- `along` (buckets,) where each begins; `along_dense`, `along_stream` (layers, buckets).
- `places` (P,) names; `alpha` (P, layers, heads) of them; `entropy`, `entropy_long` (layers, heads).
- `norm_hidden`, `norm_keys`, `norm_values` (layers, positions) of the short sequences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.secrets import command_line, redact
from sinktrain.base.terminal import progress, say
from sinktrain.evaluation.attention import cut
from sinktrain.evaluation.diagnosis import Arrays, long_text, short_map, short_texts, streamed_text
from sinktrain.evaluation.diagnosis_table import table
from sinktrain.evaluation.results import environment
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.evaluation.texts import load_text
from sinktrain.streaming.spec import CacheSpec

SCHEMA = 1


def diagnose(
    model: ModelOptions,
    text: str,
    out: Path,
    tokens: int = 16384,
    skip: int = 0,
    sequences: int = 100,
    length: int = 64,
    map_sequences: int = 256,
    map_length: int = 16,
    long: int = 4096,
    bins: int = 256,
    cache: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Measures where the attention of a model goes, how much of it to the sink, and what stands there.

    Args:
        model: The model to look at.
        text: A folder made by `sinktrain prepare` (its validation part is taken), or a source of text as `sinktrain
            prepare --source` takes it.
        out: The folder to write, with diagnosis.json and maps.npz.
        tokens: How many tokens of the text to take sequences from.
        skip: How many tokens of the text to leave out first.
        sequences: How many short sequences to measure Sink_k, entropy and norms over.
        length: Tokens of text in each, behind the model's sinks.
        map_sequences: How many sequences to average the maps of each head over.
        map_length: Positions in each, the model's sinks included.
        long: Positions of the one long text, the model's sinks included.
        bins: The long text's maps have so many rows and columns at most.
        cache: The cache, x+y, that the long text is streamed through as well; by default 256 positions, with the
            model's sinks, or the first token of a model without.
        overwrite: Replace an existing folder.

    Returns:
        The folder.
    """
    asked = {"sequences": (sequences, 1), "length": (length, 2), "map_sequences": (map_sequences, 1), "long": (long, 2),
             "map_length": (map_length, 2), "bins": (bins, 1), "tokens": (tokens, 1), "skip": (skip, 0)}  # fmt: skip
    for option, (value, least) in asked.items():
        at_least(f"--{option}", value, least)
    spec = None if cache is None else CacheSpec.parse(cache, "--cache")
    if spec is not None and spec.recent is None:
        raise UserError("--cache dense: evicts nothing; write x+y, such as 1+255.")
    with (
        new_folder(out, "--out", overwrite=overwrite, reads=[model.name, text]) as folder,
        progress("diagnose", 4) as advance,
    ):
        subject = load_subject(model)
        long, notes = _fitting(subject, length, map_length, long, spec)
        needed = max(sequences * length, map_sequences * map_length, long)
        if tokens < needed:
            raise UserError(f"--tokens {tokens}: are too few for what is asked for; give {needed} or more.")
        material = load_text(text, subject.tokenizer, tokens, skip)
        record: dict[str, Any] = {"schema": SCHEMA, "kind": "diagnosis", "command": command_line()}
        record |= {"model": subject.description, "text": material.description, "notes": notes}
        found, arrays = short_texts(subject, cut(subject, material, len(subject.sink_ids) + length, sequences))
        advance(1)
        record |= found | {"maps": {"sequences": map_sequences, "length": map_length}}
        arrays |= short_map(subject, cut(subject, material, map_length, map_sequences))
        advance(1)
        record["long"], more = _long(subject, cut(subject, material, long, 1), bins, spec, notes, advance)
        record = _short(record | {"environment": environment()})
        _write(folder, record, arrays | more)
    for line in [*table(record), *(f"note: {note}" for note in notes), f"diagnosis: {out}"]:
        say(line)
    return out


def _fitting(
    subject: Subject, length: int, map_length: int, long: int, spec: CacheSpec | None
) -> tuple[int, list[str]]:
    """How long the long text can be, and what there is to say about it."""
    sinks, trained = len(subject.sink_ids), subject.description["trained_length"]
    if map_length < sinks + 2:
        raise UserError(f"--map_length {map_length}: leaves no text behind {sinks} sinks; give {sinks + 2} or more.")
    notes = []
    if spec is not None and spec.sinks < sinks:
        notes.append(f"cache {spec} keeps fewer than the {sinks} trained sinks, which is worse than no sink.")
    if trained is None:
        return long, notes
    for option, value, most in (("length", length, trained - sinks), ("map_length", map_length, trained)):
        if value > most:
            raise UserError(f"--{option} {value}: is more than the model was trained for; give {most} or less.")
    if long > trained:
        notes.append(f"the long text has {trained} positions, as many as the model was trained for.")
    return min(long, trained), notes


def _long(
    subject: Subject, row: Tensor, bins: int, spec: CacheSpec | None, notes: list[str], advance: Callable[[float], None]
) -> tuple[dict[str, Any], Arrays]:
    """The long text (1, T), in full attention and as a stream."""
    record, arrays = long_text(subject, row, bins)
    advance(1)
    sinks = max(1, len(subject.sink_ids))
    taken = spec or CacheSpec(sinks, max(1, 256 - sinks))
    try:
        streamed, more = streamed_text(subject, row, taken)
        notes += _too_long(taken, row.shape[1], subject.description["trained_length"])
    except UserError as error:
        if spec is not None:
            raise
        notes.append(f"nothing was streamed: {error}")
        streamed, more = {"cache": None, "stream": None}, {}
    advance(1)
    return record | streamed, arrays | more


def _too_long(spec: CacheSpec, tokens: int, trained: int | None) -> list[str]:
    """What speaks against a cache for a text of so many tokens: the model was trained for less, or it never evicts."""
    size, notes = spec.sinks + (spec.recent or 0), []
    if trained is not None and size > trained:
        notes.append(f"cache {spec} holds {size} positions, the model was trained for {trained}.")
    if tokens <= size + 1:  # the query that finds it full still sees all
        notes.append(
            f"cache {spec} evicts nothing before the last of {tokens} positions: the stream is the full attention."
        )
    return notes


def _short(tree: Any) -> Any:
    """Numbers with 5 digits; null for what is not finite, which JSON cannot say."""
    if isinstance(tree, dict):
        return {name: _short(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_short(value) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.5g}") if math.isfinite(tree) else None
    return tree


def _write(folder: Path, record: dict[str, Any], arrays: Arrays) -> None:
    """A line of JSON for each part of the record, and the arrays."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in redact(record).items()]
    np.savez_compressed(folder / "maps.npz", **arrays)  # type: ignore[arg-type]
    (folder / "diagnosis.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
