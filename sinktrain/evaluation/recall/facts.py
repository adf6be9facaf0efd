"""A fact, a given number of tokens of some text, and the question: laid out so that the distance is exact.

The distance d of a question is that from the token that begins to answer back to the first token of the number in the
fact. Each later token of the answer is as far from its own in the fact. So all of the number is in view while it is
asked for if d <= y, and at d = y + 1 each token of it has left the cache x+y when it is needed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sinktrain.base.errors import UserError
from sinktrain.evaluation.recall.common import Tokens, beginning
from sinktrain.evaluation.subject import Subject

NAMES = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jonas", "Karin", "Laura", "Mario",
    "Nadia", "Oscar", "Paula", "Rosa", "Simon", "Tessa", "Ursula", "Victor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
DIGITS = 5
FACT = "\nThe pass key of {name} is {number}.\n"
QUESTION = "\nWhat is the pass key of {name}? The pass key of {name} is {number}."


@dataclass(frozen=True)
class Fact:
    """A fact with its question, in tokens.

    Args:
        name: whose key it is.
        number: the key.
        fact: the ids of the sentence that says it.
        said: where the number begins in it.
        question: the ids of the question with its answer.
        answer: where the number begins and ends in that.
        other: the ids of the question answered with a number that was never said.
        other_answer: where that number begins and ends in it.
    """

    name: str
    number: int
    fact: list[int]
    said: int
    question: list[int]
    answer: tuple[int, int]
    other: list[int]
    other_answer: tuple[int, int]

    @property
    def least(self) -> int:
        """The distance when the question follows the fact at once."""
        return len(self.fact) - self.said + self.answer[0] - 1


def make_facts(subject: Subject, count: int, seed: int) -> list[Fact]:
    """`count` facts, drawn at random; the `other` number of each is that of the next."""
    draw = random.Random(f"facts {seed}")
    low, high = 10 ** (DIGITS - 1), 10**DIGITS - 1
    drawn = draw.sample(range(low, high + 1), count + 1)
    return [_fact(subject, draw.choice(NAMES), drawn[n], drawn[n + 1]) for n in range(count)]


def _fact(subject: Subject, name: str, number: int, wrong: int) -> Fact:
    fact, (said, _) = _located(subject, FACT, name, number)
    question, answer = _located(subject, QUESTION, name, number)
    other, other_answer = _located(subject, QUESTION, name, wrong)
    return Fact(name, number, fact, said, question, answer, other, other_answer)


def _located(subject: Subject, words: str, name: str, number: int) -> tuple[list[int], tuple[int, int]]:
    """The ids of a sentence and where the number stands in them."""
    text = words.format(name=name, number=number)
    tokens, begin = Tokens(subject, text), text.rindex(str(number))
    return tokens.ids, tokens.span(begin, begin + len(str(number)))


@dataclass(frozen=True)
class Layout:
    """Streams of several facts in step: the questions of a distance begin at the same position in all of them.

    Args:
        front: what each stream begins with.
        facts: one a stream.
        preambles: tokens of the filler before each fact, which keep it clear of the sinks.
        fillers: the tokens of text of each stream: the preamble, then what follows the fact.
        distances: in rising order.
    """

    front: list[int]
    facts: list[Fact]
    preambles: list[int]
    fillers: list[list[int]]
    distances: list[int]

    @property
    def streams(self) -> list[list[int]]:
        """The ids of each stream up to the question of the largest distance."""
        end = self.question_at(self.distances[-1])
        return [
            [*self.front, *filler[:before], *fact.fact, *filler[before:]][:end]
            for fact, before, filler in zip(self.facts, self.preambles, self.fillers, strict=True)
        ]

    @property
    def unsaid(self) -> list[list[int]]:
        """The ids of each stream without its fact, the question right after the preamble."""
        return [
            [*self.front, *filler[:before], *fact.question]
            for fact, before, filler in zip(self.facts, self.preambles, self.fillers, strict=True)
        ]

    def question_at(self, distance: int) -> int:
        """The position at which the questions of a distance begin."""
        fact, before = self.facts[0], self.preambles[0]
        return len(self.front) + before + len(fact.fact) + distance - fact.least


def needed_filler(facts: list[Fact], distances: list[int], preamble: int) -> int:
    """Tokens of filler a stream, at most.

    Raises:
        UserError: a distance is too small for a question.
    """
    least = max(fact.least for fact in facts)
    if distances[0] < least:
        raise UserError(
            f"--distances {distances[0]}: from the number in a fact to the answer there are at least {least} tokens; "
            f"give {least} or more."
        )
    spread = [len(fact.fact) - fact.least for fact in facts]
    return preamble + max(spread) - min(spread) + distances[-1]


def lay_out(
    subject: Subject, facts: list[Fact], fillers: list[list[int]], distances: list[int], preamble: int
) -> Layout:
    """Puts facts and filler together; `preamble` is the least of it before a fact."""
    spread = [len(fact.fact) - fact.least for fact in facts]
    before = [preamble + max(spread) - each for each in spread]
    return Layout(beginning(subject), facts, before, fillers, distances)
