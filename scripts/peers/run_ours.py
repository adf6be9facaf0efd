"""Runs one of our own, or of stock transformers, over a text; started by compare.py.

    .venv/bin/python scripts/peers/run_ours.py JOB.json RESULT.json

The job is that of run_attention_sinks.py, and names a `contestant`: `stream_nll` and `dense` evaluate a text,
`SinkCache` and `StaticCache` decode it token by token. All are timed with a full cache.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, StaticCache

from sinktrain.base.models import load_model
from sinktrain.streaming import CacheSpec, SinkCache, stream_nll
from sinktrain.streaming.nll import token_nll

PIECE = 512  # tokens run at once while a cache fills

Outcome = tuple[int, float, Tensor | None]
"""Tokens timed, seconds, and the NLL of each token after the first, where it is that of a stream."""


def now(device: str) -> float:
    """Seconds, once a GPU has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def evaluate_stream(model: PreTrainedModel, tokens: Tensor, job: dict[str, Any]) -> Outcome:
    """`stream_nll` over all tokens (T,), timed from the first chunk's end at which the cache is full."""
    spec, chunk = CacheSpec(job["sinks"], job["recent"]), job["chunk"]
    full = job["sinks"] + job["recent"]
    if job["timed"]:  # the first run makes the memory, and compiles what is compiled
        stream_nll(model, tokens[: full + 2 * chunk + 1], spec, rule=job["rule"], chunk=chunk)
    done, timed_from, start = 0, 0, now(job["device"])

    def advance(count: int) -> None:
        nonlocal done, timed_from, start
        done += count
        if timed_from == 0 and done >= full:
            timed_from, start = done, now(job["device"])

    nll = stream_nll(model, tokens, spec, rule=job["rule"], chunk=chunk, advance=advance)
    return len(nll) - timed_from, now(job["device"]) - start, nll


def evaluate_dense(model: PreTrainedModel, tokens: Tensor, job: dict[str, Any]) -> Outcome:
    """A plain forward over one sequence of C tokens after another, with no cache: the least work there can be."""
    size = job["sinks"] + job["recent"]
    sequences = [tokens[None, begin : begin + size + 1] for begin in range(0, len(tokens) - size, size)]

    def forward(sequence: Tensor) -> Tensor:
        return token_nll(model(input_ids=sequence[:, :-1], use_cache=False).logits, sequence[:, 1:])

    forward(sequences[0])
    start = now(job["device"])
    for sequence in sequences:
        forward(sequence)
    return len(sequences) * size, now(job["device"]) - start, None


def decode(model: PreTrainedModel, cache: Cache, tokens: Tensor, fill: int, steps: int, job: dict[str, Any]) -> Outcome:
    """Takes in `fill` tokens, then the next ones one by one, of which the first few are not timed."""
    parts = []

    def forward(begin: int, end: int) -> None:
        logits = model(input_ids=tokens[None, begin:end], past_key_values=cache, use_cache=True).logits
        parts.append(token_nll(logits, tokens[None, begin + 1 : end + 1])[0])

    for begin in range(0, fill, PIECE):
        forward(begin, min(begin + PIECE, fill))
    first = fill + job["warmup"]
    for i in range(fill, first):
        forward(i, i + 1)
    start = now(job["device"])
    for i in range(first, first + steps):
        forward(i, i + 1)
    return steps, now(job["device"]) - start, torch.cat(parts)


def decode_stream(model: PreTrainedModel, tokens: Tensor, job: dict[str, Any]) -> Outcome:
    """Decoding with a `SinkCache` that is full."""
    cache = SinkCache.for_model(model, CacheSpec(job["sinks"], job["recent"]), rule=job["rule"])
    return decode(model, cache, tokens, job["sinks"] + job["recent"], job["steps"], job)


def decode_static(model: PreTrainedModel, tokens: Tensor, job: dict[str, Any]) -> Outcome:
    """Stock decoding of equal length: C + 1 rows, as many as a `SinkCache` has and attends to, all full at the end.

    It attends to all its rows at each step, empty ones too, so that a step costs the same from first to last. It
    cannot go beyond them: the steps are fewer where the cache is small.
    """
    size = job["sinks"] + job["recent"]
    steps = min(job["steps"], size - job["warmup"])
    cache = StaticCache(config=model.config, max_cache_len=size + 1)
    tokens_timed, seconds, _ = decode(model, cache, tokens, size + 1 - job["warmup"] - steps, steps, job)
    return tokens_timed, seconds, None


RUN = {
    "stream_nll": evaluate_stream,
    "dense": evaluate_dense,
    "SinkCache": decode_stream,
    "StaticCache": decode_static,
}


@torch.no_grad()
def run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job's contestant; saves NLLs in job["nll"] where there are any."""
    torch.set_num_threads(job["threads"])
    model = load_model(job["model"], getattr(torch, job["dtype"])).to(job["device"]).eval()
    tokens = torch.from_numpy(np.load(job["tokens"]))[: job["length"]].to(job["device"])
    count, seconds, nll = RUN[job["contestant"]](model, tokens, job)
    if nll is not None:
        np.save(job["nll"], nll.cpu().numpy())
    names = ("sinktrain", "transformers", "torch", "numpy")
    return {"tokens": count, "seconds": seconds, "versions": {name: version(name) for name in names}}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
