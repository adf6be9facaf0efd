"""Questions as turns of a chat, each with its right answer, as tokens that follow each other."""

from __future__ import annotations

from dataclasses import dataclass

from sinktrain.base.errors import UserError
from sinktrain.evaluation.recall.questions import LETTERS, Question
from sinktrain.evaluation.subject import Subject
from sinktrain.evaluation.turns import Turns, end_ids


@dataclass(frozen=True)
class Turn:
    """A question in tokens.

    Args:
        question: what they say.
        alone: the ids of a conversation that begins with it, up to where the answer begins.
        following: the ids of it as a later turn, with the end of the answer before it.
        answer: the ids of the right answer.
        letters: for each choice the first token of its letter; empty for an answer in words.
    """

    question: Question
    alone: list[int]
    following: list[int]
    answer: list[int]
    letters: list[int]


@dataclass(frozen=True)
class Dialogue:
    """All questions, and the tokens that end a reply."""

    turns: list[Turn]
    ends: frozenset[int]

    @property
    def tokens(self) -> int:
        """Of the whole stream: the first turn, the others, and all answers but the last."""
        first, *later = self.turns
        return len(first.alone) + sum(len(each.following) for each in later) + sum(
            len(each.answer) for each in self.turns[:-1]
        )  # fmt: skip


def make_dialogue(
    subject: Subject, questions: list[Question], system: str | None, instruction: str, letter_instruction: str
) -> Dialogue:
    """Renders the questions by the model's own chat template.

    Raises:
        UserError: there is no chat template, it does not append, or the letters of the choices share a token.
    """
    turns = Turns(subject, system)
    made = []
    for question in questions:
        message = question.message(instruction, letter_instruction)
        alone, following = turns.first(message), turns.following(message)
        answer = turns.reply(message, question.answers[0])
        letters = [turns.reply(message, letter)[0] for letter in LETTERS[: len(question.choices)]]
        if len(set(letters)) < len(letters):
            raise UserError(
                "model.name: its tokenizer begins several letters of the choices with the same token; ask without "
                "choices, or use another model."
            )
        made.append(Turn(question, alone, following, answer, letters))
    return Dialogue(made, end_ids(subject) | frozenset(turns.ends()))
