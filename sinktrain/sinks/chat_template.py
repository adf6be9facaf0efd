"""A chat template that prints the sinks first, and after them what it printed before there were any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNSET = "the_tokenizer_had_no_bos_token"
"""A name that nobody gives a value: a template that asks `bos_token is defined` goes on hearing no."""


def put_sinks_first(tokenizer: PreTrainedTokenizerBase, sinks: Sequence[str], bos: str | None) -> None:
    """Rewrites the chat templates of `tokenizer`, in place; one without any stays as it is.

    `apply_chat_template` tokenizes without special tokens, so the template has to print the sinks itself. And what it
    calls `bos_token` would be the first sink, since that is the tokenizer's now: the model's own is put in its place.

    Args:
        tokenizer: has the sinks already.
        sinks: as they are written.
        bos: the `bos_token` that the templates were written for; None if there was none.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: behind_sinks(each, sinks, bos) for name, each in template.items()}
    elif template:
        tokenizer.chat_template = behind_sinks(template, sinks, bos)


def behind_sinks(template: str, sinks: Sequence[str], bos: str | None) -> str:
    """The template that prints `sinks`, then exactly what `template` prints with `bos_token` being `bos`.

    A variable that is set at the top of a template is seen in all its loops, conditions and macros, and goes before
    one that the caller passes.
    """
    value = _UNSET if bos is None else _literal(bos)
    front = f"{{{{ {_literal(''.join(sinks))} }}}}{{%- set bos_token = {value} "
    # transformers renders with `trim_blocks` and `lstrip_blocks`. A template that begins with white space is to find
    # itself at the start of a line, as before. For all others, what other engines do with a line's end is left out.
    return front + ("%}\n" if template[:1].isspace() else "-%}") + template


def _literal(text: str) -> str:
    """A string of Jinja, whose escapes are those of JSON. Other characters stay: JSON writes some of them as two."""
    return json.dumps(text, ensure_ascii=False)
