"""The rows of the table: what is asked of a model and a text, and how each is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sinktrain.base.errors import UserError, at_least
from sinktrain.evaluation.statistics.mean import estimate
from sinktrain.evaluation.subject import Subject
from sinktrain.evaluation.texts import Text
from sinktrain.streaming import CacheSpec, PositionRule, recompute_nll, stream_nll

NLL = NDArray[np.float64]
RULES: dict[PositionRule, PositionRule] = {"cache": "original", "original": "cache"}
"""Each position rule and the other one."""


@dataclass(frozen=True)
class Asked:
    """One row that is to be measured.

    Attributes:
        name: the cache, with the rule behind it where it is not that of the table; or `recompute`, with C behind it
            where it is not the largest.
        cache: None for recompute.
        rule: how distances to the sinks are counted.
        size: C; None for dense.
    """

    name: str
    cache: CacheSpec | None
    rule: PositionRule
    size: int | None

    @property
    def method(self) -> str:
        """`streaming`, `window`, `dense` or `recompute`."""
        return "recompute" if self.cache is None else self.cache.method


@dataclass(frozen=True)
class Row:
    """One row's result.

    Attributes:
        asked: what was measured.
        nll: (T,) float32, by token of the text, NaN where the token was not predicted.
        seconds: wall time.
        work: tokens run through the model.
    """

    asked: Asked
    nll: NDArray[np.float32]
    seconds: float
    work: int

    @property
    def name(self) -> str:
        """The row's."""
        return self.asked.name

    def summary(
        self, full: NDArray[np.bool_], documents: NDArray[np.int32], bytes_per_token: float | None = None
    ) -> dict[str, Any]:
        """The figures of the table; `full` (T,) marks the tokens predicted with a full cache."""
        predicted = np.isfinite(self.nll)
        counted = self.nll[predicted & full].astype(np.float64)
        interval = estimate(counted, documents=documents[predicted & full].astype(np.int64))
        with np.errstate(over="ignore"):  # a model that is that bad has a PPL of inf
            ppl_all, ppl = np.exp(self.nll[predicted].mean(dtype=np.float64)), np.exp(counted.mean())
        figures = {
            "name": self.name,
            "method": self.asked.method,
            "rule": self.asked.rule,
            "tokens": int(predicted.sum()),
            "tokens_full_cache": len(counted),
            "ppl_all": float(ppl_all),
            "ppl_full_cache": float(ppl),
            "nll_full_cache": interval.mean,
            "interval": [interval.low, interval.high],
            "bits_per_byte": interval.mean / np.log(2) / bytes_per_token if bytes_per_token else None,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.work / max(self.seconds, 1e-9), 1),
        }
        if self.asked.cache is None:
            figures["sampling_error"] = sampling_error(counted)
        return figures


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


def caches_of(budget: str, sinks: str) -> list[CacheSpec]:
    """Every cache of so many positions that keeps so many sinks: budget '256 512', sinks '0 1' gives four of them.

    Raises:
        UserError: one of the numbers is none, or leaves no place for recent tokens.
    """
    sizes, counts = _numbers(budget, "--budget", 2), _numbers(sinks, "--sinks", 0)
    if max(counts) >= min(sizes):
        raise UserError(f"--sinks {sinks}: leaves no place for recent tokens in --budget {budget}; keep fewer.")
    return [CacheSpec.parse(f"{count}+{size - count}", "--budget") for size in sizes for count in counts]


def _numbers(text: str, option: str, least: int) -> list[int]:
    try:
        found = list(dict.fromkeys(int(word) for word in text.replace(",", " ").split()))
    except ValueError:
        found = []
    if not found:
        raise UserError(f"{option} {text!r}: give whole numbers, such as 256,512.")
    for each in found:
        at_least(option, each, least)
    return found


def rows_asked(specs: list[CacheSpec], rule: PositionRule, both_rules: bool, recompute: int) -> list[Asked]:
    """The rows of a table: every cache, those with sinks under the other rule too, and recompute for every size."""
    rows = [Asked(str(spec), spec, rule, spec.size) for spec in specs]
    if both_rules:
        other = RULES[rule]
        rows += [Asked(f"{spec} {other}", spec, other, spec.size) for spec in specs if spec.method == "streaming"]
    sizes = sorted({spec.size for spec in specs if spec.size is not None}, reverse=True)
    if recompute > 0:
        rows += [Asked("recompute" if size == sizes[0] else f"recompute {size}", None, rule, size) for size in sizes]
    return rows


def full_cache(tokens: int, sinks: int, size: int) -> NDArray[np.bool_]:
    """(T,) which tokens of a text are predicted by a query that finds C = `size` positions cached before it.

    Token n stands at position sinks + n of the stream, and is predicted by the query one before it.
    """
    mask: NDArray[np.bool_] = np.arange(tokens) + sinks - 1 >= size
    return mask


def recomputed_tokens(tokens: int, size: int, samples: int, seed: int) -> list[int]:
    """Which tokens to recompute: one drawn at random from each of `samples` equal parts of the text.

    The same text, size and seed give the same positions for every model, with sinks or without, so that models can be
    compared too. With all of them a cache of `size` is full there.
    """
    candidates = np.arange(size + 1, tokens)
    generator = np.random.default_rng(seed)
    return [int(generator.choice(part)) for part in np.array_split(candidates, min(samples, len(candidates)))]


def sampling_error(sampled: NLL) -> float | None:
    """The standard error of the mean of a sample with one token from each of n equal parts of the text.

    From the differences of neighbours, since a part has no second token: sqrt(sum (x_i - x_(i+1))^2 / (2 n (n - 1)))
    (Wolter, Introduction to Variance Estimation, 2007, section 8.2, estimator v2).
    """
    n = len(sampled)
    return None if n < 2 else float(np.sqrt(np.sum(np.diff(sampled) ** 2) / (2 * n * (n - 1))))


def stream_text(
    subject: Subject, text: Text, asked: Asked, chunk: int, advance: Callable[[int], None] | None = None
) -> NLL:
    """(T,) NLL of the text, its sinks in front, through one cache."""
    assert asked.cache is not None
    sinks = torch.tensor(subject.sink_ids, dtype=torch.long)
    stream = torch.cat((sinks, text.tokens))
    nll = stream_nll(subject.model, stream, asked.cache, rule=asked.rule, chunk=chunk, advance=advance)
    _check_finite(subject, nll)
    aligned = np.full(len(text.tokens), np.nan)
    first = max(0, 1 - len(sinks))  # without a sink nothing predicts the first token
    aligned[first:] = nll.double().numpy()[max(0, len(sinks) - 1) :]
    return aligned


def recompute_some(
    subject: Subject,
    text: Text,
    size: int,
    targets: Sequence[int],
    batch: int,
    advance: Callable[[int], None] | None = None,
) -> NLL:
    """(T,) NLL at `targets`, each from a window of `size` tokens computed afresh; NaN elsewhere."""
    aligned = np.full(len(text.tokens), np.nan)
    if not targets:  # another tokenizer's text may have fewer tokens than were to be recomputed
        return aligned
    nll = recompute_nll(
        subject.model, text.tokens, targets, size, sink_ids=subject.sink_ids, batch=batch, advance=advance
    )
    _check_finite(subject, nll)
    aligned[list(targets)] = nll.double().numpy()
    return aligned


def _check_finite(subject: Subject, nll: torch.Tensor) -> None:
    """NaN stands for "not predicted" from here on, so it must not come from the model."""
    if not bool(nll.isfinite().all()):
        raise UserError(
            f"model.name {subject.options.name}: {int((~nll.isfinite()).sum())} of {nll.numel()} NLLs are not finite; "
            "use --model.dtype float32, or a model whose weights are whole."
        )
