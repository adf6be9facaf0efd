"""From a model and cache sizes to the record of stream.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sinktrain.base.secrets import command_line
from sinktrain.base.terminal import progress
from sinktrain.benchmarks.decoders import make_decoder
from sinktrain.benchmarks.summary import PAPER, decoding_ratios, decoding_summary, evaluation_summary, paper_ratio
from sinktrain.benchmarks.throughput import evaluation_seconds, tokens_needed
from sinktrain.benchmarks.timing import in_turns, peak_bytes
from sinktrain.evaluation.results import environment
from sinktrain.evaluation.subject import Subject
from sinktrain.streaming import CacheSpec

SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """How to measure; the options of `bench_stream`."""

    methods: tuple[str, ...]
    seconds: float
    rounds: int
    tokens: int
    chunk: int
    compile: bool
    seed: int


def measure(subject: Subject, specs: list[CacheSpec], settings: Settings, *, evaluation: bool) -> dict[str, Any]:
    """Measures every cache and returns the content of stream.json."""
    model, with_evaluation = subject.model, specs if evaluation else []
    with progress("caches", len(specs) + len(with_evaluation)) as advance:
        decoding = []
        for spec in specs:
            decoding.append(_decoding(subject, spec, settings))
            advance(1)
        evaluated = []
        for spec, row in zip(with_evaluation, decoding, strict=False):
            evaluated.append(_evaluation(subject, spec, settings, row))
            advance(1)
    device = model.device
    return {
        "schema": SCHEMA,
        "command": command_line(),
        "model": subject.description,
        "machine": {
            "device": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
        },
        "settings": asdict(settings),
        "weights_bytes": sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        "peak_bytes": peak_bytes(device),
        "decoding": decoding,
        "evaluation": evaluated,
        "paper": PAPER,
        "environment": environment(),
    }


def _decoding(subject: Subject, spec: CacheSpec, settings: Settings) -> dict[str, Any]:
    """A row of the first table."""
    assert spec.size is not None
    text = _random_tokens(subject, spec.size, settings.seed)[None].to(subject.model.device)
    if settings.compile:
        torch.compiler.reset()  # else what was compiled for other sizes counts against the limit of recompilations
    decoders = [
        make_decoder(method, subject.model, text, spec, compiled=settings.compile) for method in settings.methods
    ]
    working = {decoder.method: decoder.working_bytes() for decoder in decoders}
    turns = {
        decoder.method: partial(decoder.turn, 1 if decoder.method == "recompute" else settings.tokens)
        for decoder in decoders
    }
    found = in_turns(turns, seconds=settings.seconds, rounds=settings.rounds)
    methods = {
        decoder.method: {
            **decoding_summary(found[decoder.method]),
            "cache_bytes": decoder.cache_bytes,
            "working_bytes": working[decoder.method],
            "evicted": decoder.evicted,
        }
        for decoder in decoders
    }
    return {
        "cache": str(spec),
        "size": spec.size,
        "methods": methods,
        "ratios": decoding_ratios(methods),
        "paper_recompute/streaming": paper_ratio(spec.size),
    }


def _evaluation(subject: Subject, spec: CacheSpec, settings: Settings, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the last table; `row` is that of decoding with the same cache."""
    assert spec.size is not None
    found = evaluation_seconds(
        subject.model,
        spec,
        _random_tokens(subject, tokens_needed(spec.size, settings.chunk), settings.seed),
        chunk=settings.chunk,
        seconds=settings.seconds,
        rounds=settings.rounds,
    )
    streaming = row["methods"].get("streaming")
    summary = evaluation_summary(found, None if streaming is None else streaming["median_ms"])
    return {"cache": str(spec), "size": spec.size, **summary}


def _random_tokens(subject: Subject, count: int, seed: int) -> Tensor:
    """(count,) token ids."""
    vocabulary = subject.model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed))
