"""What a grid is made of: pieces that are measured one by one, and who measures which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say
from sinktrain.evaluation.contestants import Contestant, files_of
from sinktrain.evaluation.grid import Asked
from sinktrain.evaluation.results import SCHEMA, environment
from sinktrain.evaluation.subject import Subject

WINDOWS = 64
"""Recomputed tokens a piece."""
ATTENTION = -1
"""Stands for the number of a row: the attention on the first position."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how; the same settings give the same results.

    Attributes:
        models: side by side.
        texts: names.
        rows: of the table of each model and text.
        tokens: of each text.
        skip: tokens left out first.
        recompute: tokens to recompute.
        chunk: tokens at once.
        batch: recomputed windows at once.
        attention: measure that on the first position, too.
        seed: of the choice of recomputed tokens.
    """

    models: list[Contestant]
    texts: list[str]
    rows: list[Asked]
    tokens: int
    skip: int
    recompute: int
    chunk: int
    batch: int
    attention: bool
    seed: int

    @property
    def size(self) -> int:
        """C of the largest cache."""
        return max(row.size for row in self.rows if row.size is not None)

    @property
    def samples(self) -> int:
        """How many tokens are recomputed: no more than there are with a full cache."""
        return max(0, min(self.recompute, self.tokens - self.size - 1))

    @property
    def plan(self) -> dict[str, Any]:
        """What must be the same for pieces that are there already to be of use."""
        versions = environment()
        return {
            "models": [each.identity for each in self.models],
            "texts": [[name, files_of(name)] for name in self.texts],
            "rows": [[row.name, row.rule] for row in self.rows],
            "versions": [SCHEMA, *(versions.get(name) for name in ("sinktrain", "torch", "transformers"))],
            **{
                name: getattr(self, name)
                for name in ("tokens", "skip", "recompute", "chunk", "batch", "attention", "seed")
            },
        }

    @property
    def cells(self) -> Iterator[tuple[int, int]]:
        """Numbers of model and text, of each cell."""
        yield from ((m, t) for m in range(len(self.models)) for t in range(len(self.texts)))


def too_few(tokens: int, size: int) -> UserError:
    """The sentence for a text that is shorter than the caches deserve."""
    return UserError(f"--tokens {tokens}: too few to fill a cache of {size} and judge it; give {2 * size} or more.")


def warn(subject: Subject, settings: Settings) -> None:
    """Says which caches are longer than what the model was trained for, or keep too few of its sinks."""
    length, trained = subject.description["trained_length"], len(subject.sink_ids)
    if length is not None and settings.size > length:
        say(f"warning: the cache holds {settings.size} positions, the model was trained for {length}.")
    for spec in dict.fromkeys(row.cache for row in settings.rows if row.cache is not None):
        if 0 < spec.sinks < trained:
            say(f"warning: cache {spec} keeps fewer than the {trained} trained sinks, which is worse than no sink.")


@dataclass(frozen=True)
class Piece:
    """A part of a row of a cell; `row` may be ATTENTION."""

    model: int
    text: int
    row: int
    part: int
    cost: int

    @property
    def name(self) -> str:
        """Of its file, less the suffix."""
        return f"m{self.model}-t{self.text}-r{self.row}-p{self.part}"


def pieces(settings: Settings) -> list[Piece]:
    """All pieces, a model's together; the cost is in tokens run through a model."""
    found = []
    for model, text in settings.cells:
        for number, row in enumerate(settings.rows):
            if row.cache is not None:
                found.append(Piece(model, text, number, 0, settings.tokens))
                continue
            assert row.size is not None
            for part, begin in enumerate(range(0, settings.samples, WINDOWS)):
                found.append(Piece(model, text, number, part, min(WINDOWS, settings.samples - begin) * row.size))
        if settings.attention:
            found.append(Piece(model, text, ATTENTION, 0, 1024))
    return found


def shared_out(work: list[Piece], count: int) -> list[list[Piece]]:
    """The pieces of each of `count` ranks: the dearest first to whom has least, then in the order of the table."""
    shares: list[list[Piece]] = [[] for _ in range(count)]
    loads = [0] * count
    for piece in sorted(work, key=lambda each: -each.cost):
        least = loads.index(min(loads))
        shares[least].append(piece)
        loads[least] += piece.cost
    order = {piece: number for number, piece in enumerate(work)}
    return [sorted(share, key=order.__getitem__) for share in shares]
