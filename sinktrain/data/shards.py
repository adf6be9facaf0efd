"""Tokens to files, a shard at a time: a finished shard outlives a kill, a half one is dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinktrain.data.journal import Done, Journal
from sinktrain.data.prepared import SPLITS, Tokens, trained_file

# What is remembered of each document: 33 bytes, whatever its length.
RECORD = np.dtype([("hash", "<u8"), ("tokens", "<i8"), ("characters", "<i8"), ("bytes", "<i8"), ("validation", "u1")])
_BLOCK = 2**16  # records that are in memory at once
_SHARD = 2**22  # tokens after which a shard ends, with a document: some seconds of work


class Entry(NamedTuple):
    """What is known of a document before its tokens are.

    Attributes:
        hash: from `sinktrain.data.splitting.document_hash`.
        characters: its length.
        bytes: its length in UTF-8.
        validation: whether it is held out.
        rows: documents of the source up to this one, the empty ones too.
        empty: how many of these are empty.
        alone: it is a part of the source's only document.
    """

    hash: int
    characters: int
    bytes: int
    validation: bool
    rows: int
    empty: int
    alone: bool


class Shards:
    """The files of tokens of both splits and of the documents' records, open for more.

    What lies behind the last finished shard is cut off. Close it, or use it in a `with` block; a shard that is not
    finished by then is lost.

    Args:
        folder: of `train.bin` and `validation.bin`.
        records: the file of `RECORD`s.
        dtype: of a token in the files.
        journal: takes a line for each finished shard.
        done: what the journal said.
        chat: whether the files of what is trained on, a byte a token, are written too.

    Raises:
        ValueError: a file is shorter than the journal says.
    """

    def __init__(
        self, folder: Path, records: Path, dtype: np.dtype[Tokens], journal: Journal, done: Done, chat: bool = False
    ) -> None:
        self.done = done
        self._journal = journal
        self._opened = ExitStack()
        self._documents, self._tokens = list(done.documents), list(done.tokens)
        self._length = self._unfinished = 0
        sizes = [count * dtype.itemsize for count in done.tokens]
        self._files = [
            self._opened.enter_context(_open_at(folder / f"{split}.bin", size))
            for split, size in zip(SPLITS, sizes, strict=True)
        ]
        self._trained = [
            self._opened.enter_context(_open_at(folder / trained_file(split), count))
            for split, count in zip(SPLITS, done.tokens, strict=True)
            if chat
        ]
        self._records = self._opened.enter_context(_open_at(records, sum(done.documents) * RECORD.itemsize))

    def write(self, ids: NDArray[Tokens], entry: Entry, trained: NDArray[np.uint8] | None = None) -> None:
        """Adds tokens (n,) to the document that is being written; in a chat, with (n,) which are trained on."""
        self._files[entry.validation].write(ids.data)
        if trained is not None:
            self._trained[entry.validation].write(trained.data)
        self._length += len(ids)

    def close_document(self, entry: Entry) -> None:
        """Ends the document that is being written, and the shard if it is full."""
        record = (entry.hash, self._length, entry.characters, entry.bytes, entry.validation)
        self._records.write(np.array(record, dtype=RECORD).tobytes())
        self._documents[entry.validation] += 1
        self._tokens[entry.validation] += self._length
        self._unfinished += self._length
        self._length = 0
        if self._unfinished >= _SHARD:
            self.finish_shard(Done(entry.rows, entry.empty, alone=entry.alone))

    def finish_shard(self, source: Done) -> None:
        """Puts everything on disk, then says so in the journal.

        Args:
            source: how far the source was read; the counts of documents and tokens are filled in.
        """
        for file in (*self._files, *self._trained, self._records):
            file.flush()
            os.fsync(file.fileno())
        first, second = self._documents
        self.done = replace(source, documents=(first, second), tokens=(self._tokens[0], self._tokens[1]))
        self._journal.add(self.done)
        self._unfinished = 0

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def records(path: Path) -> Iterator[NDArray[np.void]]:
    """The records of all documents in order, (n,) at a time, so that any number of documents takes little memory."""
    with path.open("rb") as file:
        while len(block := np.fromfile(file, RECORD, _BLOCK)):
            yield block


def _open_at(path: Path, size: int) -> BufferedRandom:
    """Opens a file for what comes after its first `size` bytes."""
    path.touch()
    there = path.stat().st_size
    if there < size:
        raise ValueError(f"{path.name} has {there:,} bytes where the journal says {size:,}")
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
