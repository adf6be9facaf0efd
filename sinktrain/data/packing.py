"""Tokens to rows of equal length, with the sinks in front: packing `chunk` and packing `document`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sinktrain.data.plan import plan_rows
from sinktrain.data.prepared import PreparedText, Split, Tokens

DEFAULT_LENGTH = 512  # positions of a sample where nobody says another number
IGNORED = -100  # the label that every loss of torch and transformers leaves out
PADDING = 0  # what stands where there is no text: any token, since no label and no document sees it
Packing = Literal["chunk", "document"]
Columns: TypeAlias = dict[str, NDArray[np.int64]]


class Rows(Protocol):
    """Samples of a text by number."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, rows: NDArray[np.int64]) -> Columns:
        """The rows (n,) as `input_ids` and `labels` (n, T), with packing `document` also `position_ids` (n, T)."""


@dataclass(frozen=True)
class Layout:
    """How a sample is made up.

    Args:
        packing: `chunk` or `document`.
        length: T, positions of a sample.
        sinks: the k sink tokens; none for a model without a sink.
        reserve: positions kept for sinks, k or more: of a sample with `chunk`, of each document with `document`.
    """

    packing: Packing
    length: int
    sinks: tuple[int, ...]
    reserve: int

    @property
    def text_length(self) -> int:
        """The most tokens of text that stand behind one another in a sample."""
        return self.length - self.reserve

    def rows(self, text: PreparedText, split: Split) -> Rows:
        """The samples of a split.

        Raises:
            ValueError: packing `chunk` of conversations, which would begin anywhere in them.
        """
        trained = text.trained(split)
        if self.packing == "chunk" and trained is not None:
            raise ValueError("conversations cannot be cut into chunks")
        if self.packing == "chunk":
            return Chunks(text.tokens(split), self.text_length, self.sinks)
        return Documents(text.tokens(split), text.documents(split), self.length, self.sinks, self.reserve, trained)


class Chunks:
    """Packing `chunk`: the text is one line of tokens, cut into samples of equal length; the remainder is dropped.

    Args:
        tokens: (tokens,) the text.
        text_length: tokens of a sample.
        sinks: the k sink tokens to put in front of each; none for a model without a sink.

    Raises:
        ValueError: no position is left for text.
    """

    def __init__(self, tokens: NDArray[Tokens], text_length: int, sinks: Sequence[int]) -> None:
        if text_length < 1:
            raise ValueError(f"a sample of {text_length} tokens has no room for text")
        rows = len(tokens) // text_length
        self._text = np.asarray(tokens)[: rows * text_length].reshape(rows, text_length)
        self._sinks = np.array(sinks, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._text)

    def read(self, rows: NDArray[np.int64]) -> Columns:
        """The rows (n,) as `input_ids` and `labels`, both (n, k + text_length); see `with_sinks`."""
        return with_sinks(self._text[rows], self._sinks)


def with_sinks(text: NDArray[Tokens | np.int64], sinks: NDArray[np.int64]) -> Columns:
    """Puts the sinks (k,) in front of every row of text (n, t).

    Returns:
        `input_ids` (n, k + t), and `labels` of the same shape as transformers wants them: labels[t] is the token AT t
        (the loss shifts them), and -100 at the sinks, since no position predicts a sink.
    """
    ids = np.empty((len(text), len(sinks) + text.shape[1]), dtype=np.int64)
    ids[:, : len(sinks)] = sinks
    ids[:, len(sinks) :] = text
    labels = ids.copy()
    labels[:, : len(sinks)] = IGNORED
    return {"input_ids": ids, "labels": labels}


class Documents:
    """Packing `document`: a row holds whole documents, or pieces of one that is longer than a row.

    Every piece begins with sinks of its own, and its positions restart at 0, by which transformers keeps attention
    inside it (when there is neither a cache nor an attention mask). What no document fills is padding: a piece of its
    own without labels. No token of one piece is predicted by another: without sinks, the first token of a piece is
    predicted by nothing. Of a conversation, only what is trained on has labels, and a piece without such tokens is in
    no row.

    Args:
        tokens: (tokens,) the text.
        documents: (documents,) where each starts.
        length: positions of a row.
        sinks: the k sink tokens of each piece; none for a model without a sink.
        reserve: positions that the plan keeps for the sinks of a piece, k or more. With the same number for every
            kind of sink, each row of each kind holds the same text.
        trained: (tokens,) 1 where a token is trained on; None where all are.

    Raises:
        ValueError: no position is left for text, or fewer are reserved than there are sinks.
    """

    def __init__(
        self,
        tokens: NDArray[Tokens],
        documents: NDArray[np.int64],
        length: int,
        sinks: Sequence[int],
        reserve: int,
        trained: NDArray[np.uint8] | None = None,
    ) -> None:
        if reserve < len(sinks):
            raise ValueError(f"{reserve} positions reserved for {len(sinks)} sinks")
        self._tokens, self._length = np.asarray(tokens), length
        self._sinks = np.array(sinks, dtype=np.int64)
        self._trained = None if trained is None else np.asarray(trained)
        self._plan = plan_rows(documents, len(tokens), length, reserve, self._trained)

    def __len__(self) -> int:
        return len(self._plan.firsts) - 1

    def read(self, rows: NDArray[np.int64]) -> Columns:
        """The rows (n,) as `input_ids`, `labels` and `position_ids`, all (n, length)."""
        starts, widths, is_text = self._layout(rows)
        places = np.arange(len(rows) * self._length)
        positions = places - np.repeat(np.cumsum(widths) - widths, widths)
        filled = np.repeat(is_text, widths)
        at_text, at_sink = filled & (positions >= len(self._sinks)), filled & (positions < len(self._sinks))
        ids = np.full(len(places), PADDING, dtype=np.int64)
        places_in_text = (np.repeat(starts, widths) + positions)[at_text] - len(self._sinks)
        ids[at_text] = self._tokens[places_in_text]
        labels = np.where(at_text, ids, IGNORED)
        if self._trained is not None:
            labels[at_text] = np.where(self._trained[places_in_text], labels[at_text], IGNORED)
        ids[at_sink] = self._sinks[positions[at_sink]]
        if not len(self._sinks):
            labels[positions == 0] = IGNORED
        columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {name: column.reshape(len(rows), self._length) for name, column in columns.items()}

    def _layout(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The pieces of the rows, padding as the last of each row: start in the text, width in the row, is it text."""
        firsts, counts = self._plan.firsts[rows], self._plan.firsts[rows + 1] - self._plan.firsts[rows]
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pieces = np.repeat(firsts, counts) + number
        widths = self._plan.lengths[pieces] + len(self._sinks)
        row = np.repeat(np.arange(len(rows)), counts)
        padding = self._length - np.bincount(row, weights=widths, minlength=len(rows)).astype(np.int64)
        ends = np.cumsum(counts)
        return (
            np.insert(self._plan.starts[pieces], ends, 0),
            np.insert(widths, ends, padding),
            np.insert(np.ones(len(pieces), dtype=np.bool_), ends, False),
        )
