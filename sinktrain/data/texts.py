"""The documents of a source from where a preparation stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.data.journal import Done
from sinktrain.data.shards import Entry
from sinktrain.data.splitting import cut_tail, document_hash, is_held_out


class Texts:
    """The documents of a source that are not empty; it can be read more than once.

    Args:
        read: gives the documents from the one of this number on, the empty ones too.
        source: its name, for the error messages.
        most: how many documents are taken, or None for all.
        jumps: whether `read` gets to a number without reading what comes before, as a hub does.
        chat: the documents are conversations, and those without a turn of the assistant are the empty ones.

    Attributes:
        rows: how many documents of the source the last reading has seen.
        empty: how many of these were skipped because they hold white space at most.
        alone: whether the last reading found one document only.
    """

    def __init__(
        self,
        read: Callable[[int], Iterator[str]],
        source: str,
        most: int | None = None,
        jumps: bool = False,
        chat: bool = False,
    ) -> None:
        self.source, self.rows, self.empty, self.alone = source, 0, 0, False
        self._read, self._most, self._jumps, self._chat = read, most, jumps, chat

    def __iter__(self) -> Iterator[str]:
        return (text for text, _, _ in self._from(Done()))

    def entries(
        self, fraction: float, seed: int, done: Done, hashes: Iterable[int], draft: Path
    ) -> Iterator[tuple[str, Entry]]:
        """Every document that is not done, with what is known of it. The tail of a source's only one is held out.

        The documents that are done are read again and compared; where the source can jump, the last of them only.

        Args:
            fraction: of the documents, for validation.
            seed: of their hashes.
            done: how far the work is.
            hashes: of all documents that are done.
            draft: where the work lies, for the error message.

        Raises:
            UserError: the source has no text, or is another one than it was.
        """
        known = sum(done.documents)
        jumped = self._jumps and known > 0 and not done.alone
        if jumped:
            known, hashes = 1, deque(hashes, maxlen=1)
        reading = self._from(done if jumped else Done())
        head = list(islice(reading, 2))
        self.alone = len(head) == 1 and not jumped
        if known and self.alone != done.alone:
            raise self._changed(draft)
        if self.alone:
            head = self._in_two(head[0], fraction)
        expected = islice(hashes, known)
        for number, (text, rows, empty) in enumerate(chain(head, reading)):
            data = text.encode()
            key = document_hash(data, seed)
            if number < known:
                if key != next(expected):
                    raise self._changed(draft)
                continue
            validation = number == 1 if self.alone else is_held_out(key, fraction)
            yield text, Entry(key, len(text), len(data), validation, rows, empty, self.alone)
        if next(expected, None) is not None:
            raise self._changed(draft)

    def _from(self, done: Done) -> Iterator[tuple[str, int, int]]:
        """The documents with text from the last one done on, each with the counts of rows and of empty ones so far."""
        start, self.empty = max(done.rows - 1, 0), done.empty
        found = max(sum(done.documents) - 1, 0)
        for rows, text in enumerate(self._read(start), start + 1):
            self.rows = rows
            if not text or text.isspace():
                self.empty += 1
                continue
            found += 1
            yield text, rows, self.empty
            if found == self._most:
                return
        if not found:
            lack = "conversation with a turn of the assistant" if self._chat else "text"
            raise UserError(f"--source {self.source}: holds no {lack}; name a source with some.")

    def _in_two(self, document: tuple[str, int, int], fraction: float) -> list[tuple[str, int, int]]:
        text, rows, empty = document
        if self._chat:
            raise UserError(
                f"--source {self.source}: holds a single conversation, of which no part can be held out; name a source "
                "with more."
            )
        if len(text) < 2:
            raise UserError(f"--source {self.source}: holds a single character; name a source with more text.")
        return [(part, rows, empty) for part in cut_tail(text, fraction)]

    def _changed(self, draft: Path) -> UserError:
        return UserError(
            f"--source {self.source}: is not what it was when the run that was stopped read it; delete {draft} to "
            "begin anew."
        )
