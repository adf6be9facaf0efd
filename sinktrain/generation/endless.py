"""One stream of tokens: what is fed, what comes next, and a memory that does not grow with either."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinktrain.base.models import trained_length
from sinktrain.evaluation.subject import Subject
from sinktrain.generation.sampling import Sampler
from sinktrain.streaming import CacheSpec, PositionRule, SinkCache

CHUNK = 512
"""Tokens of a prompt that are run at once: enough to keep a processor busy, and few enough to take little memory."""


@dataclass
class Pace:
    """Tokens and the seconds they took."""

    tokens: int = 0
    seconds: float = 0.0

    def count(self, tokens: int, since: float) -> None:
        """Adds `tokens` that have been worked on from the time `since` until now."""
        self.tokens += tokens
        self.seconds += time.perf_counter() - since

    @property
    def rate(self) -> float:
        """Tokens a second; 0 before the first."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Stream:
    """A model with its streaming cache: tokens go in, the next one comes out.

    The caller decides what to feed, so that a token that was drawn can be fed (`stream.next([token])`) or dropped.

        token = stream.next(prompt)
        while True:
            token = stream.next([token])

    Args:
        subject: the model, its tokenizer and its sinks.
        cache: made for this model.
        sampler: draws the next token.
        seen: tokens in the stream so far, sinks included.
        drawn: tokens that came out, those that were dropped included.
        prompted: the pace of tokens fed many at a time.
        generated: the pace of tokens fed one at a time.
    """

    subject: Subject
    cache: SinkCache
    sampler: Sampler
    seen: int = 0
    drawn: int = 0
    prompted: Pace = field(default_factory=Pace)
    generated: Pace = field(default_factory=Pace)

    @torch.inference_mode()
    def next(self, ids: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> int | None:
        """Feeds `ids`, in chunks, and draws the token after them.

        Args:
            ids: one token or more, which follow all that was fed before.
            stopped: asked before each chunk after the first; when it says yes, the rest is not fed.

        Returns:
            The id of the next token; None when it was stopped on the way.
        """
        begin, pace = time.perf_counter(), self.generated if len(ids) == 1 and self.seen else self.prompted
        for start in range(0, len(ids), CHUNK):
            if start and stopped():
                return None
            logits = self._run(ids[start : start + CHUNK])
        token = self.sampler(logits)
        pace.count(len(ids), begin)
        self.drawn += 1
        return token

    def _run(self, ids: Sequence[int]) -> Tensor:
        """One forward over `ids`, without an attention mask, which would grow; the logits (V,) after the last."""
        tokens = torch.tensor([ids], dtype=torch.long, device=self.subject.model.device)
        logits: Tensor = self.subject.model(input_ids=tokens, past_key_values=self.cache, logits_to_keep=1).logits
        self.seen += len(ids)
        return logits[0, -1]

    def reset(self) -> None:
        """Forgets all tokens; what has been counted of the pace stays."""
        self.cache.reset()
        self.seen = 0

    def evicted(self) -> int:
        """How many tokens have left the cache."""
        size = self.cache.spec.size
        return 0 if size is None else max(0, self.seen - size)

    def cache_bytes(self) -> int:
        """The memory of the cache in bytes."""
        tensors = [tensor for layer in self.cache.layers for tensor in vars(layer).values()]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def choose_cache(subject: Subject, cache: str | None) -> CacheSpec:
    """The cache that the option names; by default the trained sinks (4 for a model without) in 1024 positions.

    Args:
        subject: whose sinks and trained length decide on the default.
        cache: `x+y`, `dense`, or None for the default.

    Raises:
        UserError: it is not a cache.
    """
    if cache is not None:
        return CacheSpec.parse(cache, "--cache")
    return CacheSpec.default(len(subject.sink_ids), trained_length(subject.model.config))


def cautions(subject: Subject, spec: CacheSpec) -> list[str]:
    """What speaks against this cache for this model, a sentence each."""
    found = []
    length, trained = trained_length(subject.model.config), len(subject.sink_ids)
    if spec.size is None:
        end = f", and the model was trained for {length} positions" if length else ""
        found.append(f"--cache dense: nothing is evicted, so memory grows with every token{end}.")
    elif length is not None and spec.size > length:
        found.append(f"--cache {spec}: holds {spec.size} positions, but the model was trained for {length}.")
    if spec.size is not None and spec.sinks < trained:
        found.append(
            f"--cache {spec}: keeps {spec.sinks} of the {trained} sinks that the model was trained with, which the "
            f"StreamingLLM paper measured as worse than no sink; keep {trained}."
        )
    return found


def open_stream(subject: Subject, spec: CacheSpec, rule: PositionRule, sampler: Sampler) -> Stream:
    """A new stream of `subject` with nothing in its cache; what speaks against the cache, `cautions` says.

    Raises:
        UserError: the model has no streaming form.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `cautions` says it, for a person at a terminal
        cache = SinkCache.for_model(subject.model, spec, rule=rule)
    return Stream(subject, cache, sampler)
