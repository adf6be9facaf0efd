"""Streams that begin in different ways: at different places of a text, or the same text behind different tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Start:
    """A stream.

    Args:
        tokens: (T,) without sinks.
        place: of its first token in the text; None where that was put in front.
        special: its first token is one of those that are tried besides the sample.
    """

    tokens: Tensor
    place: int | None = None
    special: bool = False

    def description(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What the record says of it."""
        first = int(self.tokens[0])
        return {"first": first, "piece": tokenizer.decode([first]), "place": self.place, "special": self.special}


def from_places(text: Tensor, count: int, tokens: int, margin: int) -> list[Start]:
    """`count` streams of `tokens` tokens, no two from the same text or with the same first token.

    Args:
        text: (count * (tokens + margin),) at least.
        margin: how far a stream may be moved, to begin with a token that no stream before it begins with.

    Raises:
        UserError: the text does not have so many different tokens.
    """
    starts, used = [], set[int]()
    for block in range(0, count * (tokens + margin), tokens + margin):
        ids = text[block : block + margin + 1].tolist()
        shift = next((shift for shift, token in enumerate(ids) if token not in used), None)
        if shift is None:
            raise _too_few(count, len(used))
        used.add(ids[shift])
        starts.append(Start(text[block + shift : block + shift + tokens], block + shift))
    return starts


def behind_tokens(subject: Subject, text: Tensor, count: int, tokens: int, seed: int) -> list[Start]:
    """The first tokens of `text`, behind `count` tokens drawn from all different ones of it, then behind special ones.

    Each stream has `tokens` tokens, the one in front included. The same text and seed give the same streams for every
    model of one tokenizer, with sinks or without.

    Raises:
        UserError: the text does not have so many different tokens.
    """
    special = special_tokens(subject)
    known = np.setdiff1d(np.unique(text.numpy()), special)
    if len(known) < count:
        raise _too_few(count, len(known))
    picked = np.random.default_rng(seed).choice(known, count, replace=False).tolist()
    return [
        Start(torch.cat((torch.tensor([first]), text[: tokens - 1])), special=first in special)
        for first in [*picked, *special]
    ]


def special_tokens(subject: Subject) -> list[int]:
    """The ids of the tokenizer's special tokens but the sinks, and of the line break, if that is a single token."""
    tokenizer: Any = subject.tokenizer
    special = sorted(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    found = [*special, *(line_break if len(line_break) == 1 else [])]
    return [index for index in dict.fromkeys(found) if index not in subject.sink_ids]


def _too_few(count: int, found: int) -> UserError:
    return UserError(f"--streams {count}: the text has only {found} different first tokens; ask for fewer streams.")
