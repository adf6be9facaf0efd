"""One text through one model under several caches: the NLL of every token, under the same conditions for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.evaluation.bootstrap import bootstrap_mean
from sinktrain.evaluation.subject import Subject, Text
from sinktrain.streaming import CacheSpec, PositionRule, recompute_nll, stream_nll

NLL = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One cache's result.

    Args:
        name: the cache, or `recompute`.
        method: `streaming`, `window`, `dense` or `recompute`.
        nll: (T,) by token of the text, NaN where the token was not predicted.
        seconds: wall time.
        work: tokens run through the model.
    """

    name: str
    method: str
    nll: NLL
    seconds: float
    work: int

    def summary(self, full: NDArray[np.bool_]) -> dict[str, Any]:
        """The figures of the table; `full` (T,) marks the tokens predicted with a full cache."""
        predicted = np.isfinite(self.nll)
        counted = self.nll[predicted & full]
        interval = bootstrap_mean(counted)
        return {
            "name": self.name,
            "method": self.method,
            "tokens": int(predicted.sum()),
            "tokens_full_cache": len(counted),
            "ppl_all": float(np.exp(self.nll[predicted].mean())),
            "ppl_full_cache": float(np.exp(counted.mean())),
            "nll_full_cache": interval.mean,
            "interval": [interval.low, interval.high],
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.work / self.seconds, 1),
        }


def parse_caches(text: str, option: str = "--caches") -> list[CacheSpec]:
    """Reads caches separated by spaces or commas.

    Raises:
        UserError: one of them is not a cache, or stands there twice, or there is none.
    """
    names = text.replace(",", " ").split()
    caches = [CacheSpec.parse(name, option) for name in names]
    if not caches or len(set(caches)) < len(caches):
        raise UserError(f"{option} {text!r}: name each cache once, such as '0+256 1+255 4+252'.")
    return caches


def full_cache(tokens: int, sinks: int, size: int) -> NDArray[np.bool_]:
    """(T,) which tokens of a text are predicted by a query that finds C = `size` positions cached before it.

    Token n stands at position sinks + n of the stream, and is predicted by the query one before it.
    """
    mask: NDArray[np.bool_] = np.arange(tokens) + sinks - 1 >= size
    return mask


def stream_row(
    subject: Subject,
    text: Text,
    cache: CacheSpec,
    *,
    rule: PositionRule,
    chunk: int,
    advance: Callable[[int], None] | None = None,
) -> Row:
    """Streams the text, its sinks in front, through one cache."""
    sinks = torch.tensor(subject.sink_ids, dtype=torch.long)
    stream = torch.cat((sinks, text.tokens))
    start = time.perf_counter()
    nll = stream_nll(subject.model, stream, cache, rule=rule, chunk=chunk, advance=advance)
    seconds = time.perf_counter() - start
    _check_finite(subject, nll)
    aligned = np.full(len(text.tokens), np.nan)
    first = max(0, 1 - len(sinks))  # without a sink nothing predicts the first token
    aligned[first:] = nll.double().numpy()[max(0, len(sinks) - 1) :]
    return Row(str(cache), cache.method, aligned, seconds, len(stream) - 1)


def recompute_row(
    subject: Subject,
    text: Text,
    size: int,
    samples: int,
    *,
    seed: int,
    batch: int,
    advance: Callable[[int], None] | None = None,
) -> Row:
    """Recomputes at `samples` positions: one drawn at random from each of as many equal parts of the text.

    The same text, size and seed give the same positions for every model, with sinks or without, so that models can be
    compared too. With all of them the cache is full there.
    """
    candidates = np.arange(size + 1, len(text.tokens))
    samples = min(samples, len(candidates))
    generator = np.random.default_rng(seed)
    targets = [int(generator.choice(part)) for part in np.array_split(candidates, samples)]
    start = time.perf_counter()
    nll = recompute_nll(
        subject.model, text.tokens, targets, size, sink_ids=subject.sink_ids, batch=batch, advance=advance
    )
    seconds = time.perf_counter() - start
    _check_finite(subject, nll)
    aligned = np.full(len(text.tokens), np.nan)
    aligned[targets] = nll.double().numpy()
    return Row("recompute", "recompute", aligned, seconds, samples * (size + len(subject.sink_ids)))


def _check_finite(subject: Subject, nll: torch.Tensor) -> None:
    """NaN stands for "not predicted" from here on, so it must not come from the model."""
    if not bool(nll.isfinite().all()):
        raise UserError(
            f"model.name {subject.options.name}: {int((~nll.isfinite()).sum())} of {nll.numel()} NLLs are not finite; "
            "use --model.dtype float32, or a model whose weights are whole."
        )
