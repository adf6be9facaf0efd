"""A file of questions, and when an answer to one is right."""

from __future__ import annotations

import json
import string
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError

LETTERS = string.ascii_uppercase
NORMALISATION = "Unicode NFKC, lower case, without punctuation and the articles a, an and the, one space between words"
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Question:
    """A question with its right answers.

    Args:
        line: where it stands in the file, from 1.
        text: what is asked.
        answers: any of which is right; the letter of the right choice if there are choices.
        choices: to choose from, or none for an answer in words.
    """

    line: int
    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    def message(self, instruction: str, letter_instruction: str) -> str:
        """What the model is asked: the question, the choices by letter, and how to answer."""
        listed = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join(part for part in (self.text, *listed, letter_instruction if listed else instruction) if part)

    def is_right(self, reply: str) -> bool:
        """Whether a reply is, normalised, one of the answers."""
        return normalised(reply) in {normalised(answer) for answer in self.answers}

    def is_held_by(self, reply: str) -> bool:
        """Whether the words of an answer stand, one after another, in a reply."""
        return any(f" {normalised(answer)} " in f" {normalised(reply)} " for answer in self.answers)


def normalised(text: str) -> str:
    """The text as answers are compared: see `NORMALISATION`."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(" " if unicodedata.category(each)[0] in "PS" else each for each in plain)
    return " ".join(word for word in bare.split() if word not in _ARTICLES)


def read_questions(path: Path) -> list[Question]:
    """Reads a JSONL file, one question a line: `question`, `answer` (a text, or a list of texts that are all right),
    or `question`, `choices` and `answer` (a letter, or a number counted from 0). Empty lines are passed over.

    Raises:
        UserError: there is no such file, or a line is no question.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"--questions {path}: cannot be read ({error.strerror}); name a JSONL file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--questions {path}: is not UTF-8; convert it first.") from error
    found = [_question(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"--questions {path}: holds no question; write one a line.")
    return found


def _question(path: Path, number: int, line: str) -> Question:
    def wrong(why: str) -> UserError:
        return UserError(f"--questions {path}: line {number} {why}.")

    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise wrong("is not JSON; write one object a line") from error
    if not isinstance(entry, dict) or not _is_text(entry.get("question")):
        raise wrong('has no text "question"; write {"question": ..., "answer": ...}')
    if "choices" not in entry:
        answer: Any = entry.get("answer")
        answers: list[Any] = answer if isinstance(answer, list) else [answer]
        if not answers or not all(_is_text(each) and normalised(each) for each in answers):
            raise wrong('has no "answer" in words; give a text, or a list of texts that are all right')
        return Question(number, entry["question"], tuple(answers))
    choices = entry["choices"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS) or not all(map(_is_text, choices)):
        raise wrong(f'has "choices" that are not 2 to {len(LETTERS)} texts; write a list of them')
    letter = _letter(entry.get("answer"), len(choices))
    if letter is None:
        last = LETTERS[len(choices) - 1]
        raise wrong(f'has an "answer" that is none of its choices; give a letter, A to {last}, or a number from 0')
    return Question(number, entry["question"], (letter,), tuple(choices))


def _letter(answer: Any, choices: int) -> str | None:
    """The letter of a choice, from a letter or a number; None if it is neither."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return LETTERS[answer] if 0 <= answer < choices else None
    if isinstance(answer, str) and len(answer.strip()) == 1:
        letter = answer.strip().upper()
        return letter if letter in LETTERS[:choices] else None
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
