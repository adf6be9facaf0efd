"""Conversations to tokens, each with whether it is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sinktrain.data.conversations import Rendered
from sinktrain.data.prepared import Tokens
from sinktrain.data.tokenizers import in_background

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 2**17  # characters that are encoded at once: with their places, tokens take forty times what their ids do


def encode_conversations(
    backend: Tokenizer, conversations: Iterable[Rendered], dtype: np.dtype[Tokens]
) -> Iterator[tuple[NDArray[Tokens], NDArray[np.uint8]]]:
    """The tokens (n,) of each conversation, and (n,) 1 where one is trained on, 0 elsewhere.

    A token is trained on if it holds any of a span: after `Assistant: `, the reply's first word may have the space in
    its token.

    Args:
        backend: that of a `Template`.
        conversations: are taken a few batches ahead of what is yielded.
        dtype: of the tokens.
    """

    def work(batch: list[Rendered]) -> list[tuple[NDArray[Tokens], NDArray[np.uint8]]]:
        made = []
        encoded = backend.encode_batch([each.text for each in batch], add_special_tokens=False)
        for conversation, found in zip(batch, encoded, strict=True):
            places = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)
            firsts, lasts = places[:, 0], np.maximum(places[:, 0], places[:, 1] - 1)
            edges = np.array(conversation.spans, dtype=np.int64).ravel()
            before, until = (np.searchsorted(edges, each, side="right") for each in (firsts, lasts))
            held = (before % 2 == 1) | (before != until)
            made.append((np.fromiter(found.ids, dtype, len(found)), held.astype(np.uint8)))
        return made

    for made in in_background(_batches(conversations), work):
        yield from made


def _batches(conversations: Iterable[Rendered]) -> Iterator[list[Rendered]]:
    batch: list[Rendered] = []
    size = 0
    for conversation in conversations:
        batch.append(conversation)
        size += len(conversation.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
