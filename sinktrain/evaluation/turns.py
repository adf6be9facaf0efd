"""The tokens of a turn of a chat, by the model's own chat template, without the turns before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import Subject

Message = dict[str, str]

_ASKED, _ANSWERED = "one", "two"
"""A turn that stands for all turns before: what it says does not matter, and is cut off."""


class Turns:
    """Renders what a turn adds to a conversation: O(1) work, however long the conversation is.

    A template that appends renders a conversation of n turns as the conversation of n - 1 turns, the reply, and what
    this class calls the turn: the end of that reply, the new message, and the beginning of the next reply. So the
    turn can be cut from the rendering of two turns, of which the first may say anything.

    Args:
        subject: whose tokenizer has the template.
        system: what the conversation begins with; None for what the template has.

    Raises:
        UserError: there is no template, it refuses such a conversation, or it does not append.
    """

    def __init__(self, subject: Subject, system: str | None = None) -> None:
        self.tokenizer, self.sinks = subject.tokenizer, subject.sink_ids
        self.system = [] if system is None else [_message("system", system)]
        if not self.tokenizer.chat_template:
            raise UserError("model.name: has no chat template; use a model that was tuned to chat.")
        self._check_that_it_appends()

    def first(self, message: str) -> list[int]:
        """The ids of the beginning of a conversation: the sinks, what the template begins with, the message."""
        return [*self.sinks, *self._encode(self._render([*self.system, _message("user", message)]))]

    def following(self, message: str) -> list[int]:
        """The ids of a later turn, which follow the last token of a reply (before the token that ended it)."""
        return self._encode(self._following(message))

    def reply(self, message: str, reply: str) -> list[int]:
        """The ids of a reply to `message`, up to where the template ends it."""
        before = self._following(message)
        asked, whole = self._encode(before), self._encode(before + reply)
        return whole[len(asked) :] if whole[: len(asked)] == asked else self._encode(reply)

    def ends(self) -> list[int]:
        """The special token that closes a reply, if the template closes it with one."""
        first = self._encode(self._following(_ASKED))[:1]
        return [token for token in first if token in self.tokenizer.all_special_ids]

    def _following(self, message: str) -> str:
        before = [*self.system, _message("user", _ASKED)]
        known = self._render(before) + _ANSWERED
        text = self._render([*before, _message("assistant", _ANSWERED), _message("user", message)])
        if not text.startswith(known):
            raise _does_not_append()
        return text.removeprefix(known)

    def _render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the next reply begins.

        Raises:
            UserError: the template refuses it.
        """
        try:
            text: Any = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises what it likes
            option = "--system" if self.system else "model.name"
            raise UserError(
                f"{option}: the chat template refuses it ({str(error).splitlines()[0].rstrip('.')}); "
                f"{'leave it out' if self.system else 'use another model'}."
            ) from error
        return str(text)

    def _encode(self, text: str) -> list[int]:
        """The ids of `text`, without sinks: a template may put its BOS, which is the sink, before every turn."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return [token for token in ids if token not in self.sinks]

    def _check_that_it_appends(self) -> None:
        """Renders three turns at once, and turn by turn: they must be the same."""
        asked, answered = ("three", "four", "five"), ("six", "seven")
        messages = [*self.system, _message("user", asked[0])]
        appended = self._render(messages)
        for answer, question in zip(answered, asked[1:], strict=True):
            messages += [_message("assistant", answer), _message("user", question)]
            appended += answer + self._following(question)
        if self._render(messages) != appended:
            raise _does_not_append()


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _does_not_append() -> UserError:
    return UserError(
        "model.name: its chat template rewrites earlier turns instead of appending to them, so that they cannot stay "
        "in the cache; use a model whose template appends, or leave out --system."
    )


def end_ids(subject: Subject) -> frozenset[int]:
    """The tokens that end a text, by the tokenizer and by the model's generation config."""
    config = subject.model.generation_config
    found = None if config is None else config.eos_token_id
    several = found if isinstance(found, list) else [found]
    return frozenset(int(token) for token in (*several, subject.tokenizer.eos_token_id) if token is not None)
