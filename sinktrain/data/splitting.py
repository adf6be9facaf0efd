"""Documents to tokens, dealt to training and validation by a hash of the document's own text."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.terminal import progress
from sinktrain.data.prepared import SPLITS, Tokens, open_tokens
from sinktrain.data.tokenizers import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What is remembered of each document: 32 bytes, whatever its length.
RECORD = np.dtype([("hash", "u8"), ("tokens", "i8"), ("characters", "i8"), ("bytes", "i8")])


def tokenize(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    dtype: np.dtype[Tokens],
    seed: int,
    total: int | None = None,
) -> NDArray[np.void]:
    """Writes the tokens of all texts to one file, each text followed by the tokenizer's end of text, if it has one.

    Args:
        texts: the documents.
        tokenizer: fast or slow; no special tokens are added but the end of text.
        path: the file, written as the tokens come.
        dtype: of a token in the file.
        seed: of the documents' hashes.
        total: the number of documents for the progress bar, if it is known.

    Returns:
        An array of `RECORD`, one entry per document.
    """
    records: list[tuple[int, int, int, int]] = []
    begun: deque[tuple[int, int, int]] = deque()  # documents that `encode` has taken and not given back yet

    def noted() -> Iterator[str]:
        for text in texts:
            begun.append((document_hash(text, seed), len(text), len(text.encode())))
            yield text

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    length = 0
    with path.open("wb") as file, progress("tokenizing documents", total) as advance:
        for ids, is_last in encode(tokenizer, noted()):
            piece = np.asarray(ids + end if is_last else ids, dtype=dtype)
            piece.tofile(file)
            length += len(piece)
            if is_last:
                key, characters, size = begun.popleft()
                records.append((key, length, characters, size))
                length = 0
                advance(1)
    return np.array(records, dtype=RECORD)


def document_hash(text: str, seed: int) -> int:
    """64 bits of a keyed hash: the same for the same text, wherever it stands; others with another seed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()[:64]).digest(), "big")


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


def deal(path: Path, dtype: np.dtype[Tokens], records: NDArray[np.void], validation: NDArray[np.bool_]) -> None:
    """Copies each document's tokens from the file of all to its split's file, and writes where documents start.

    Args:
        path: the file that `tokenize` wrote; `train.bin`, `train.documents.npy` and so on are put beside it.
        dtype: of its tokens.
        records: (documents,) what `tokenize` returned.
        validation: (documents,) what `held_out` returned.
    """
    tokens = open_tokens(path, dtype)
    ends = np.cumsum(records["tokens"])
    starts = ends - records["tokens"]
    for split, chosen in zip(SPLITS, (~validation, validation), strict=True):
        with (path.parent / f"{split}.bin").open("wb") as file:
            for number in np.flatnonzero(chosen):
                tokens[starts[number] : ends[number]].tofile(file)
        lengths = records["tokens"][chosen]
        np.save(path.parent / f"{split}.documents.npy", (np.cumsum(lengths) - lengths).astype(np.int64))
