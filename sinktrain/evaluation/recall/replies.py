"""Greedy answers to questions: each alone, and one after another in a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sinktrain.evaluation.recall.dialogue import Dialogue, Turn
from sinktrain.evaluation.recall.feeding import Streams
from sinktrain.evaluation.recall.questions import LETTERS
from sinktrain.evaluation.subject import Subject
from sinktrain.streaming import CacheSpec


@dataclass(frozen=True)
class Reply:
    """What the model answered, and whether that is right; `holds`: the right answer stands in it."""

    text: str
    right: bool
    holds: bool


def alone(subject: Subject, dialogue: Dialogue, most: int, chunk: int, advance: Callable[[float], None]) -> list[Reply]:
    """Each question in a conversation of its own, with everything in view."""
    longest = max(len(turn.alone) for turn in dialogue.turns) + most
    streams = Streams.open(subject, CacheSpec(0, None), longest, chunk=chunk)
    found = []
    for turn in dialogue.turns:
        streams.cache.reset()
        found.append(_reply(streams, turn, streams.last(turn.alone), dialogue.ends, most))
        advance(1)
    return found


def streamed(streams: Streams, dialogue: Dialogue, most: int, advance: Callable[[float], None]) -> list[Reply]:
    """One question after another, each answered on a branch of the stream, which goes on with the right answer."""
    found: list[Reply] = []
    ids = dialogue.turns[0].alone
    for turn, following in zip(dialogue.turns, [*dialogue.turns[1:], None], strict=True):
        logits = streams.last(ids)
        found.append(_reply(streams if turn.letters else streams.branch(), turn, logits, dialogue.ends, most))
        if following is not None:
            ids = [*turn.answer, *following.following]
        advance(1)
    return found


def _reply(streams: Streams, turn: Turn, logits: Tensor, ends: frozenset[int], most: int) -> Reply:
    """The answer to a question whose last token has the `logits` (V,)."""
    if turn.letters:
        letter = LETTERS[int(logits[turn.letters].argmax())]
        right = letter in turn.question.answers
        return Reply(letter, right, right)
    text = str(streams.subject.tokenizer.decode(streams.greedy(logits, ends, most), skip_special_tokens=True)).strip()
    return Reply(text, turn.question.is_right(text), turn.question.is_held_by(text))
