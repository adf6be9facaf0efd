"""Documents to tokens, dealt to training and validation by a hash of the document's own text."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.terminal import progress
from sinktrain.data.conversation_tokens import encode_conversations
from sinktrain.data.conversations import Rendered, Template
from sinktrain.data.prepared import Tokens
from sinktrain.data.shards import Entry, Shards
from sinktrain.data.tokenizers import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Piece: TypeAlias = tuple[NDArray[Tokens], NDArray[np.uint8] | None, bool]
"""Tokens of a document, which of them are trained on, and whether the document ends with them."""
_TOLD = 64  # documents after which the progress bar moves: drawing it costs as much as a short document


def tokenize(
    texts: Iterable[tuple[str, Entry]],
    tokenizer: PreTrainedTokenizerBase,
    shards: Shards,
    dtype: np.dtype[Tokens],
    total: int | None = None,
    template: Template | None = None,
) -> None:
    """Writes the tokens of all texts, each text followed by the tokenizer's end of text, if it has one.

    With a template, texts are conversations, and their tokens are what the template makes of them, and nothing more.

    Args:
        texts: the documents that are not in `shards` yet.
        tokenizer: fast or slow; no special tokens are added but the end of text.
        shards: takes the tokens as they come.
        dtype: of a token in the files.
        total: the number of documents for the progress bar, if it is known.
        template: of conversations.
    """
    begun: deque[Entry] = deque()  # documents that `encode` has taken and not given back yet
    pieces = (
        _pieces_of_texts(texts, tokenizer, dtype, begun)
        if template is None
        else _pieces_of_conversations(texts, template, dtype, begun)
    )
    ended = 0
    with progress("tokenizing documents", total) as advance:
        advance(sum(shards.done.documents))
        for ids, trained, is_last in pieces:
            shards.write(ids, begun[0], trained)
            if is_last:
                shards.close_document(begun.popleft())
                ended += 1
                if ended % _TOLD == 0:
                    advance(_TOLD)


def _pieces_of_texts(
    texts: Iterable[tuple[str, Entry]],
    tokenizer: PreTrainedTokenizerBase,
    dtype: np.dtype[Tokens],
    begun: deque[Entry],
) -> Iterator[_Piece]:
    def noted() -> Iterator[str]:
        for text, entry in texts:
            begun.append(entry)
            yield text

    end = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], dtype=dtype)
    for ids, is_last in encode(tokenizer, noted(), dtype):
        yield np.concatenate([ids, end]) if is_last else ids, None, is_last


def _pieces_of_conversations(
    texts: Iterable[tuple[str, Entry]], template: Template, dtype: np.dtype[Tokens], begun: deque[Entry]
) -> Iterator[_Piece]:
    def rendered() -> Iterator[Rendered]:
        for text, entry in texts:
            found = template.render(json.loads(text), entry.rows)
            size = len(found.text.encode())
            begun.append(entry._replace(characters=len(found.text), bytes=size))
            yield found

    for ids, trained in encode_conversations(template.backend, rendered(), dtype):
        yield ids, trained, True


def document_hash(text: str | bytes, seed: int) -> int:
    """64 bits of a keyed hash: the same for the same text, wherever it stands; others with another seed."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=str(seed).encode()[:64]).digest(), "big")


def held_out(hashes: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which documents are for validation: those whose hash is in the lowest `fraction` of all hashes.

    That depends on a document's text alone, so neither the order nor the other documents matter, and two copies of
    one text never part. Where one side would be empty, it gets the document that was closest to it, so both sides
    hold one if there are two different texts.

    Args:
        hashes: (documents,) from `document_hash`.
        fraction: between 0 and 1.

    Returns:
        (documents,) True for validation. All False or all True only if every text is the same.
    """
    mask = hashes < np.uint64(fraction * 2**64)
    if not mask.any():
        mask = hashes == hashes.min()
    elif mask.all():
        mask = hashes != hashes.max()
    return mask


def cut_tail(text: str, fraction: float) -> tuple[str, str]:
    """Cuts a text of 2 characters or more in two parts, the second holding `fraction` of its characters, both some."""
    cut = min(max(round(len(text) * (1 - fraction)), 1), len(text) - 1)
    return text[:cut], text[cut:]


def is_held_out(key: int, fraction: float) -> bool:
    """Whether the document of this hash is for validation, as `held_out` says of many at once."""
    return key < int(fraction * 2**64)
