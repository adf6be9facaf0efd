"""Conversations: lists of messages in; out the text of the model's own chat template, and what of it is trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sinktrain.base.errors import UserError
from sinktrain.data.readers import OPTION, Place
from sinktrain.sinks.tokenizer import plain_backend, sink_tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"
_OTHER = "\ue000 something else \ue001"
"""What no template and no conversation has."""

_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = list[dict[str, Any]]


class Rendered(NamedTuple):
    """The text of a conversation, and what of it is trained on: spans [start, end), disjoint, ascending, none empty."""

    text: str
    spans: list[tuple[int, int]]


def as_conversation(value: object, place: Place) -> str:
    """A list of messages as JSON; an empty text where the assistant has no turn, so that it is skipped.

    Raises:
        UserError: it is no list of messages, each with a role and content.
    """
    if value is None:
        return ""
    where = f"{OPTION} {place.source}: row {place.row:,}"
    if not isinstance(value, list):
        kind = type(value).__name__
        raise UserError(
            f"{where}: its field {place.field!r} holds {kind}, not a list of messages; name another with --field."
        )
    messages: Messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            kind = type(message).__name__
            raise UserError(f"{where}: its message {number} is {kind}; give each message a role and content.")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                lack = f"has no {key}" if message.get(key) is None else f"has a {key} that is not text"
                raise UserError(f"{where}: its message {number} {lack}; give each message a role and content.")
        messages.append({key: part for key, part in message.items() if part is not None})
    if not any(message["role"] == ASSISTANT for message in messages):
        return ""
    return json.dumps(messages, ensure_ascii=False)


class Template:
    """Renders conversations as the model sees them, but for its sinks, which come when a batch is made.

    Where the template marks what the assistant says with `{% generation %}` blocks, these are trained on. Otherwise
    a turn of the assistant is what follows the conversation before it, rendered up to where a reply begins. So its
    header is not trained on and the token that ends it is; white space behind that token belongs to the next turn.
    Where the template writes a turn otherwise once there are more, it is the content and the token that ends it.

    Everything is rendered by transformers, in Jinja's sandbox.

    Args:
        tokenizer: backed by `tokenizers`, with a chat template. If it has sinks, they are left out.
        name: its own, for the error messages.
        source: that of the conversations.

    Attributes:
        tokenizer: the same.
        source: of the template.
        backend: turns a rendered text into tokens, none of them a sink, and knows where in the text each stands.

    Raises:
        UserError: there is no chat template, or no such backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, source: str) -> None:
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError as error:  # none at all, or several and none of them the default
            raise UserError(
                f"--tokenizer {name}: has no chat template; name that of a model that was tuned to chat."
            ) from error
        backend = plain_backend(tokenizer)
        if backend is None:
            raise UserError(
                f"--tokenizer {name}: {type(tokenizer).__name__} does not say where in a text a token stands; use a "
                "tokenizer with a tokenizer.json."
            )
        self.backend, self.tokenizer, self._name, self._rows = backend, tokenizer, name, source
        self._sinks = "".join(sink_tokens_of(tokenizer))
        # A model of ours that was exported before its template was rewritten calls its sink `bos_token` there.
        self._roles: dict[str, Any] = (
            {"bos_token": ""} if tokenizer.bos_token and tokenizer.bos_token in self._sinks else {}
        )
        self._has_blocks = _BLOCK.search(self.source) is not None
        self._ends = tuple(token for token in tokenizer.get_added_vocab() if token)

    def render(self, messages: Messages, row: int) -> Rendered:
        """The text of a conversation, and the spans that are trained on.

        Args:
            messages: at least one of them the assistant's.
            row: where they were found, counted from 1, for the error message.

        Raises:
            UserError: the template refuses them, or does not append turn after turn.
        """
        try:
            if self._has_blocks:
                return self._by_blocks(messages)
            text, spans = self._text(messages), []
            for number, message in enumerate(messages):
                if message["role"] == ASSISTANT:
                    spans.append(self._turn(messages, number, text))
        except _Rewrites:
            raise UserError(
                f"--tokenizer {self._name}: its chat template writes a conversation otherwise once there is more of it "
                f"({OPTION} {self._rows}, row {row:,}), so that the assistant's turns cannot be told from the rest; "
                "use one that marks them with {% generation %}."
            ) from None
        except Exception as error:  # a template raises what it likes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"{OPTION} {self._rows}: row {row:,}: the chat template refuses the conversation ({reason}); correct "
                "the row, or use another template."
            ) from error
        return Rendered(text, _ascending(spans))

    def _text(self, messages: Messages, asks: bool = False) -> str:
        """Up to the last message; if it `asks`, up to where the assistant's reply to it begins."""
        text: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks, **self._roles
        )
        return str(text).removeprefix(self._sinks)

    def _turn(self, messages: Messages, number: int, whole: str) -> tuple[int, int]:
        """The span of the message of this number in the text of all."""
        ended = self._text(messages[: number + 1])
        begun = self._text(messages[:number], asks=True) if number else self._before_the_first(messages)
        if not (whole.startswith(ended) and ended.startswith(begun)):
            return self._content(messages, number, whole)
        turn = ended[len(begun) :]
        if (stripped := turn.rstrip()).endswith(self._ends):
            turn = stripped
        return len(begun), len(begun) + len(turn)

    def _content(self, messages: Messages, number: int, whole: str) -> tuple[int, int]:
        """The span of what the message says and of the token that ends it: between what stays when it says otherwise.

        For templates that write a turn in another way once there are more: Qwen 3 leaves out what replies thought.
        """
        other = self._text([{**each, "content": _OTHER} if i == number else each for i, each in enumerate(messages)])
        before, found, after = other.partition(_OTHER)
        end = len(whole) - len(after)
        said = messages[number]["content"].strip()
        same = whole.startswith(before) and whole.endswith(after) and len(before) <= end
        if not found or _OTHER in after or not same or whole[len(before) : end].strip() != said:
            raise _Rewrites
        mark = max((token for token in self._ends if after.startswith(token)), key=len, default="")
        return len(before), end + len(mark)

    def _before_the_first(self, messages: Messages) -> str:
        """What comes before a conversation's first message, the assistant's: all that does not depend on what it is."""
        one, other = (self._text([{**messages[0], "content": content}]) for content in ("x", "y"))
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        return one[:same]

    def _by_blocks(self, messages: Messages) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        roles: dict[str, Any] = {**self.tokenizer.special_tokens_map, **self._roles}
        made: Any = render_jinja_template(
            [messages], chat_template=self.source, return_assistant_tokens_mask=True, **roles
        )
        text, spans = str(made[0][0]), made[1][0]
        front = len(self._sinks) if self._sinks and text.startswith(self._sinks) else 0
        return Rendered(text[front:], [(start - front, end - front) for start, end in _ascending(spans)])


def _ascending(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without empty ones and those inside others: a block may stand in another."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if kept and start < kept[-1][1]:
            kept[-1] = (kept[-1][0], max(end, kept[-1][1]))
        elif start < end:
            kept.append((start, end))
    return kept


class _Rewrites(Exception):
    """The text of some messages is not the beginning of the text of more."""
