"""Which documents share a row: whole documents packed into rows of fixed length, with little left over."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pattern = tuple[tuple[int, int], ...]  # a row's content: (length of a piece, how many of that length), ...


@dataclass(frozen=True)
class Plan:
    """Rows of pieces, a piece being a document or a part of one that is longer than a row.

    Attributes:
        starts: (pieces,) int64: where each piece begins in the text. Pieces stand row by row, in a row as in the text.
        lengths: (pieces,) int64: its tokens.
        firsts: (rows + 1,) int64: the number of each row's first piece; the last entry is the number of pieces.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    firsts: NDArray[np.int64]


def plan_rows(
    documents: NDArray[np.int64], tokens: int, length: int, reserve: int, trained: NDArray[np.uint8] | None = None
) -> Plan:
    """Packs documents into rows.

    Best-fit-decreasing (Ding et al., Fewer Truncations Improve Language Modeling, ICML 2024), done on the histogram of
    lengths (Krell et al., Efficient Sequence Packing, arXiv 2107.02027), so that its time depends on the number of
    lengths and not of documents: the longest piece goes to the row with the least room that is enough for it, and
    a row is begun only when no other has room. Rows come in the order of their first piece in the text.

    Args:
        documents: (documents,) where each starts; the first is 0.
        tokens: of the whole text.
        length: positions of a row.
        reserve: positions that each piece needs beside its own tokens, for its sinks.
        trained: (tokens,) 1 where a token is trained on; pieces without any are left out, since nothing would be
            learned from them. None where all are.

    Raises:
        ValueError: a row has no room for text.
    """
    if length <= reserve:
        raise ValueError(f"{reserve} sinks leave no room for text in {length} positions")
    starts, lengths = _pieces(documents, tokens, length - reserve)
    if trained is not None and len(starts):
        some = np.maximum.reduceat(trained, starts) > 0  # the pieces follow one another without a gap
        starts, lengths = starts[some], lengths[some]
    by_length = np.argsort(lengths, kind="stable")
    used = np.concatenate(([0], np.cumsum(np.bincount(lengths, minlength=length + 1))))  # of each length, from where on
    row_of = np.empty(len(starts), dtype=np.int64)
    rows = 0
    for pattern, count in _best_fit(np.bincount(lengths, minlength=length + 1), length, reserve):
        for size, each in pattern:
            chosen = by_length[used[size] : used[size] + count * each]
            row_of[chosen] = rows + np.arange(count * each) // each
            used[size] += count * each
        rows += count
    earliest = np.full(rows, len(starts), dtype=np.int64)
    np.minimum.at(earliest, row_of, np.arange(len(starts)))
    rank = np.empty(rows, dtype=np.int64)
    rank[np.argsort(earliest)] = np.arange(rows)
    row_of = rank[row_of]
    order = np.argsort(row_of, kind="stable")
    firsts = np.concatenate(([0], np.cumsum(np.bincount(row_of, minlength=rows)))).astype(np.int64)
    return Plan(starts[order], lengths[order], firsts)


def _pieces(documents: NDArray[np.int64], tokens: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of the pieces, in the order of the text: documents cut after every `most` tokens."""
    sizes = np.diff(np.append(documents, tokens))
    counts = -(-sizes // most)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of the piece in its document
    starts = np.repeat(documents, counts) + number * most
    return starts, np.minimum(np.repeat(sizes, counts) - number * most, most)


def _best_fit(histogram: NDArray[np.int64], length: int, reserve: int) -> list[tuple[Pattern, int]]:
    """Patterns of rows and how many rows have each, for `histogram[n]` pieces of n tokens."""
    groups: dict[int, list[tuple[Pattern, int]]] = {}  # by the room that is left
    rooms: list[int] = []  # the keys, ascending

    def put(room: int, pattern: Pattern, count: int) -> None:
        if not count:
            return
        if room not in groups:
            groups[room] = []
            insort(rooms, room)
        groups[room].append((pattern, count))

    for size in np.flatnonzero(histogram)[::-1].tolist():
        cost, left = size + reserve, int(histogram[size])
        while left and (found := bisect_left(rooms, cost)) < len(rooms):
            room = rooms[found]
            pattern, count = groups[room].pop()
            each = room // cost  # the room goes on being the tightest until it is too small
            whole = min(count, left // each)
            part = left - whole * each if whole < count else 0  # what is left for one row more, less than it could take
            put(room, pattern, count - whole - (part > 0))
            put(room - each * cost, (*pattern, (size, each)), whole)
            put(room - part * cost, (*pattern, (size, part)), int(part > 0))
            left -= whole * each + part
            if not groups[room]:
                del groups[room]
                rooms.remove(room)
        whole, rest = divmod(left, length // cost)
        put(length - length // cost * cost, ((size, length // cost),), whole)
        put(length - rest * cost, ((size, rest),), int(rest > 0))
    return [group for room in rooms for group in groups[room]]
