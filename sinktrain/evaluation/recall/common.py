"""What the three verbs share: their caches, where a stream begins, where characters are among tokens, the result."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.records import as_json
from sinktrain.base.secrets import command_line
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import environment
from sinktrain.evaluation.subject import Subject
from sinktrain.streaming import CacheSpec

SCHEMA = 1
Item = TypeVar("Item")


def choose_caches(subject: Subject, caches: str | None, sizes: Sequence[int], window: int = 0) -> list[CacheSpec]:
    """The caches that --caches names; by default the model's sinks (4 for a model without) in `sizes`, and `dense`.

    Args:
        subject: whose sinks count.
        caches: `x+y` or `dense`, separated by spaces or commas; None for the default.
        sizes: C of the default ones.
        window: C of a cache without sinks that stands before them; 0 for none.

    Raises:
        UserError: one of them is no cache, or stands there twice, or there is none.
    """
    if caches is None:
        sinks = len(subject.sink_ids) or 4
        found = [CacheSpec(sinks, size - sinks) for size in sizes]
        return [*([CacheSpec(0, window)] if window else []), *found, CacheSpec(0, None)]
    named = [CacheSpec.parse(name, "--caches") for name in caches.replace(",", " ").split()]
    if not named or len(set(named)) < len(named):
        raise UserError(f"--caches {caches!r}: name each cache once, such as '4+252 4+1020 dense'.")
    return named


def warn(subject: Subject, specs: Sequence[CacheSpec], longest: int) -> None:
    """Says what speaks against a cache for this model: too long for it, or without all of its sinks.

    Args:
        subject: the model.
        specs: the caches.
        longest: tokens of the longest stream, which a dense cache holds.
    """
    length, trained = subject.description["trained_length"], len(subject.sink_ids)
    for spec in specs:
        held = longest if spec.size is None else spec.size
        if length is not None and held > length:
            say(f"warning: cache {spec} holds {held} positions, the model was trained for {length}.")
        if spec.size is not None and 0 < spec.sinks < trained:
            say(f"warning: cache {spec} keeps fewer than the {trained} trained sinks, which is worse than no sink.")


def check_room(specs: Sequence[CacheSpec], needed: int, what: str) -> None:
    """Refuses a cache in which there is no room for a question.

    Raises:
        UserError: a cache keeps fewer than `needed` recent tokens; `what` needs them.
    """
    for spec in specs:
        if spec.recent is not None and spec.recent < needed:
            raise UserError(
                f"--caches {spec}: keeps {spec.recent} recent tokens, but {what} takes {needed}; use "
                f"{spec.sinks}+{needed} or larger."
            )


def numbers(text: str, option: str, least: int) -> list[int]:
    """Whole numbers separated by spaces or commas, in rising order, each once.

    Raises:
        UserError: one of them is none, or below `least`, or there is none.
    """
    try:
        found = sorted({int(part) for part in text.replace(",", " ").split()})
    except ValueError as error:
        raise UserError(f"{option} {text!r}: give whole numbers with spaces between them, such as '20 40'.") from error
    if not found:
        raise UserError(f"{option}: is empty; give whole numbers with spaces between them, such as '20 40'.")
    at_least(option, found[0], least)
    return found


def beginning(subject: Subject) -> list[int]:
    """What a stream begins with: the sinks, or what the tokenizer puts in front of a text (a BOS, if anything)."""
    if subject.sink_ids:
        return list(subject.sink_ids)
    with_special: list[int] = subject.tokenizer("a").input_ids
    bare: list[int] = subject.tokenizer("a", add_special_tokens=False).input_ids
    front = with_special[: len(with_special) - len(bare)]
    return front if with_special[len(front) :] == bare else []  # else something comes after the text


class Tokens:
    """A text in tokens that knows which of them stand for which characters.

    Args:
        subject: whose tokenizer is used; no special tokens are added.
        text: the text.

    Raises:
        UserError: the tokenizer cannot say it.
    """

    def __init__(self, subject: Subject, text: str) -> None:
        if not subject.tokenizer.is_fast:
            raise UserError("model.name: its tokenizer cannot say which characters a token is of; use a fast one.")
        found = subject.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self.ids: list[int] = found.input_ids
        self._starts = [start for start, _ in found.offset_mapping]
        self._ends = [end for _, end in found.offset_mapping]

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """The tokens, from the first to one after the last, that have a part of the characters [begin, end)."""
        return bisect_left(self._ends, begin + 1), bisect_left(self._starts, end)


def parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in runs of `size`, of which the last may be shorter."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def record(kind: str, subject: Subject, fields: dict[str, Any]) -> dict[str, Any]:
    """A result: what every kind has, and `fields`."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "command": command_line(),
        "model": subject.description,
        **fields,
        "environment": environment(),
    }


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Writes a result into a folder in the making."""
    (folder / name).write_text(as_json(result))
