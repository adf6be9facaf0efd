"""The text of StreamEval (arXiv 2309.17453, section 4.4 and Figure 8), built from its description.

Lines that each say a number; every `every` lines, a query for the number of the line `distance` lines earlier:

    The REGISTER_CONTENT in line 20 is <8806>
    Query: The REGISTER_CONTENT in line 0 is <24879>

With `words` a line has a word for a name instead of its number, which small models can tell apart better.

No line is asked for twice, so that the answers, which stay in the text, help none of the later ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sinktrain.evaluation.recall.common import Tokens, beginning
from sinktrain.evaluation.recall.words import names
from sinktrain.evaluation.subject import Subject

PREFACE = "Below is a record of lines I want you to remember.\n"
LARGEST = 50_000
"""Numbers are drawn from 1 up to this one."""


@dataclass(frozen=True)
class Query:
    """One query, in tokens of the stream.

    Args:
        fact: the position of the first token of the number in the line that is asked for.
        start: the position of the first token of the answer, which the token before it predicts.
        end: one after the last token of the answer.
    """

    fact: int
    start: int
    end: int

    @property
    def distance(self) -> int:
        """How far back the number stands from the query that begins to answer: gone from the cache when beyond y.

        Each later token of the answer is as far from its own in the line.
        """
        return self.start - 1 - self.fact


@dataclass(frozen=True)
class Sample:
    """A stream with its queries."""

    ids: list[int]
    queries: list[Query]


def make_sample(
    subject: Subject, seed: int, number: int, *, distance: int, queries: int, every: int, words: bool = False
) -> Sample:
    """The `number`-th sample; its lines say the same for every distance.

    Args:
        subject: whose tokens it is written in, and begins with.
        seed: of all samples.
        number: of this one.
        distance: lines back that are asked for.
        queries: how many.
        every: lines between two queries.
        words: whether lines are named by words instead of numbers.
    """
    values = random.Random(f"StreamEval {seed} {number}")
    first = -(-distance // every) * every  # the first line with a query is a multiple of `every`
    page, said, spans, asked = _Page(PREFACE), [], [], []
    lines = range(first + every * (queries - 1) + 1)
    called = names(len(lines), random.Random(f"names {seed} {number}")) if words else [str(line) for line in lines]
    for line in lines:
        said.append(values.randint(1, LARGEST))
        spans.append(page.add(f"The REGISTER_CONTENT in line {called[line]} is ", said[-1]))
        if line >= first and line % every == 0:
            target = line - distance
            answer = page.add(f"Query: The REGISTER_CONTENT in line {called[target]} is ", said[target])
            asked.append((spans[target], answer))
    tokens, front = Tokens(subject, page.text), beginning(subject)
    found = []
    for fact, answer in asked:
        start, end = tokens.span(*answer)
        found.append(Query(len(front) + tokens.span(*fact)[0], len(front) + start, len(front) + end))
    return Sample([*front, *tokens.ids], found)


class _Page:
    """A text in the making."""

    def __init__(self, text: str) -> None:
        self.parts, self.length = [text], len(text)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, words: str, value: int) -> tuple[int, int]:
        """Appends a line that ends with a number; the characters from its first bracket to its last."""
        line = f"{words}<{value}>\n"
        begin = self.length + len(words)
        self.parts.append(line)
        self.length += len(line)
        return begin, self.length - 1
