"""Streams side by side under one kind of cache: fed in chunks, looked at where an answer is due, and branched."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import Subject
from sinktrain.streaming import CacheSpec, PositionRule, SinkCache

Look = Callable[[Tensor, Tensor], None]
"""Is given positions (n,) and the logits (B, n, V) there."""


@dataclass(frozen=True)
class Answer:
    """Where an answer stands.

    Args:
        row: the stream.
        start: the position of its first token among those that are fed; the token before it predicts it.
        end: one after its last.
    """

    row: int
    start: int
    end: int


@dataclass
class Score:
    """What the model made of an answer.

    Attributes:
        right: whether each of its tokens was the most probable one after those before it. That is the case if and only
            if greedy decoding writes exactly these tokens.
        nll: of the whole answer, in nats: the sum over its tokens.
    """

    right: bool = True
    nll: float = 0.0


@dataclass
class Streams:
    """A model with a cache of B streams in step.

    Args:
        subject: the model.
        cache: what it has of them.
        chunk: tokens a stream that are run at once; the result is the same for all.
        advance: is told how many tokens have been run, over all streams.
    """

    subject: Subject
    cache: SinkCache
    chunk: int
    advance: Callable[[float], None]

    @classmethod
    def open(
        cls,
        subject: Subject,
        spec: CacheSpec,
        longest: int,
        *,
        rule: PositionRule = "cache",
        chunk: int = 512,
        advance: Callable[[float], None] = lambda amount: None,
    ) -> Streams:
        """Streams that have seen nothing yet, of `longest` tokens at most.

        Raises:
            UserError: the model has no streaming form.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # `common.warn` says it once for all caches
            cache = SinkCache.for_model(subject.model, spec, rule=rule, longest=spec.longest(rule, longest))
        return cls(subject, cache, chunk, advance)

    def branch(self, times: int = 1) -> Streams:
        """Streams that go on from here by themselves, each `times` over; these stay as they are."""
        cache = copy.deepcopy(self.cache, {id(self.cache.positions): self.cache.positions})
        if times > 1:
            cache.batch_repeat_interleave(times)
        return replace(self, cache=cache)

    @torch.inference_mode()
    def feed(self, tokens: Tensor, wanted: Sequence[int] = (), look: Look | None = None) -> None:
        """Runs `tokens` (B, L), which follow all that was fed before.

        Args:
            tokens: ids. A row that ends early is filled up with anything, and is of no use afterwards.
            wanted: the positions among these L whose logits matter.
            look: is given those logits, chunk by chunk. Others are not computed.
        """
        places = torch.tensor(sorted(set(wanted)), dtype=torch.long)
        for begin in range(0, tokens.shape[1], self.chunk):
            piece = tokens[:, begin : begin + self.chunk].to(self.subject.model.device)
            here = places[(places >= begin) & (places < begin + piece.shape[1])]
            keep = here - begin if len(here) else torch.tensor([piece.shape[1] - 1])
            logits = self.subject.model(
                input_ids=piece, past_key_values=self.cache, logits_to_keep=keep.to(piece.device)
            ).logits
            if look is not None and len(here):
                look(here, logits)
            self.advance(piece.numel())

    def last(self, tokens: Sequence[int]) -> Tensor:
        """Runs the `tokens` of a single stream; the logits (V,) after the last of them.

        Raises:
            UserError: they are not numbers.
        """
        found: list[Tensor] = []
        self.feed(torch.tensor([tokens]), [len(tokens) - 1], lambda _, logits: found.append(logits[0, 0]))
        if bool(found[0].isnan().any()):
            raise self.not_finite()
        return found[0]

    def not_finite(self) -> UserError:
        """What is said of logits that are no numbers."""
        return UserError(
            f"model.name {self.subject.options.name}: its logits under the cache {self.cache.spec} are not finite; use "
            "--model.dtype float32, or a model whose weights are whole."
        )

    def greedy(self, logits: Tensor, ends: frozenset[int], most: int) -> list[int]:
        """The most probable token each time, from `logits` (V,) on, up to one of `ends` or `most` tokens."""
        ids: list[int] = []
        while len(ids) < most:
            token = int(_sayable(self.subject, logits[None].float()).argmax())
            if token in ends:
                break
            ids.append(token)
            if len(ids) < most:
                logits = self.last([token])
        return ids


def score(streams: Streams, tokens: Tensor, answers: Sequence[Answer]) -> list[Score]:
    """Runs `tokens` (B, L), in which the right answers stand, and scores these, all at once.

    An answer is right when greedy decoding from its place would write the same tokens, so nothing need be decoded; the
    text goes on with the right answer either way, as in StreamEval.

    Args:
        streams: under the cache in question.
        tokens: the text, the answers in it.
        answers: where they stand; none may begin at position 0.

    Raises:
        UserError: an NLL is not finite.
    """
    found = [Score() for _ in answers]
    due: dict[int, list[tuple[int, int, int]]] = {}
    for number, answer in enumerate(answers):
        for place in range(answer.start, answer.end):
            due.setdefault(place - 1, []).append((number, answer.row, int(tokens[answer.row, place])))

    def look(places: Tensor, logits: Tensor) -> None:
        asked = [(column, *each) for column, place in enumerate(places.tolist()) for each in due[place]]
        columns, numbers, rows, targets = (torch.tensor(part) for part in zip(*asked, strict=True))
        targets = targets.to(logits.device)
        picked = logits[rows.to(logits.device), columns.to(logits.device)]  # (n, V)
        picked = picked if picked.dtype == torch.float64 else picked.float()
        nll = picked.logsumexp(dim=-1) - picked.gather(-1, targets[:, None])[:, 0]
        hits = _sayable(streams.subject, picked).argmax(dim=-1) == targets
        for number, value, hit in zip(numbers.tolist(), nll.tolist(), hits.tolist(), strict=True):
            found[number].nll += value
            found[number].right &= hit

    streams.feed(tokens, list(due), look)
    if not torch.tensor([each.nll for each in found]).isfinite().all():
        raise streams.not_finite()
    return found


def _sayable(subject: Subject, logits: Tensor) -> Tensor:
    """The logits (n, V) of what can be written: no sinks, nor rows of the embedding that have no token."""
    logits = logits.clone()
    logits[:, subject.sink_ids] = -torch.inf
    logits[:, len(subject.tokenizer) :] = -torch.inf
    return logits


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as one tensor (B, L); short ones are filled up at their end, where nothing is asked any more."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
