"""Facts asked for at several distances: the streams are run once, each question is put to a branch of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sinktrain.evaluation.recall.facts import Layout
from sinktrain.evaluation.recall.feeding import Answer, Score, Streams, padded, score
from sinktrain.evaluation.subject import Subject
from sinktrain.streaming import CacheSpec, PositionRule


def work(layout: Layout) -> int:
    """Tokens run for one cache."""
    questions = padded([ids for fact in layout.facts for ids in (fact.question, fact.other)])
    stream = layout.question_at(layout.distances[-1]) * len(layout.facts)
    return stream + questions.numel() * len(layout.distances)


def unsaid(subject: Subject, layout: Layout, chunk: int) -> list[Score]:
    """The answers where the fact was never said, with everything in view."""
    tokens = padded(layout.unsaid)
    answers = []
    for row, (ids, fact) in enumerate(zip(layout.unsaid, layout.facts, strict=True)):
        begin = len(ids) - len(fact.question)
        answers.append(Answer(row, begin + fact.answer[0], begin + fact.answer[1]))
    return score(Streams.open(subject, CacheSpec(0, None), tokens.shape[1], chunk=chunk), tokens, answers)


def asked(
    subject: Subject,
    spec: CacheSpec,
    layout: Layout,
    *,
    rule: PositionRule,
    chunk: int,
    advance: Callable[[float], None],
) -> dict[int, list[tuple[Score, Score]]]:
    """By distance, for each fact the score of its number and of one that was never said.

    The streams are run once; each question is put to a branch of them, so that they never hold a question or an answer.
    """
    tokens = torch.tensor(layout.streams)
    questions = padded([ids for fact in layout.facts for ids in (fact.question, fact.other)])
    ends = [end for fact in layout.facts for end in (fact.answer, fact.other_answer)]
    answers = [Answer(row, *end) for row, end in enumerate(ends)]
    longest = tokens.shape[1] + questions.shape[1]
    streams = Streams.open(subject, spec, longest, rule=rule, chunk=chunk, advance=advance)
    found, done = {}, 0
    for distance in layout.distances:
        begin = layout.question_at(distance)
        streams.feed(tokens[:, done:begin])
        scores, done = score(streams.branch(2), questions, answers), begin
        found[distance] = list(zip(scores[::2], scores[1::2], strict=True))
    return found
