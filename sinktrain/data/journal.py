"""How far a preparation is, on disk, so that one that was killed goes on where it stood."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """How far a preparation is: everything up to here is on disk, and what lies behind it is dropped.

    Attributes:
        rows: documents of the source that were read, the empty ones too.
        empty: how many of these hold white space at most.
        documents: of training and of validation.
        tokens: of training and of validation.
        alone: the source has one document only, so its tail is held out.
        complete: the source was read to its end.
    """

    rows: int = 0
    empty: int = 0
    documents: tuple[int, int] = (0, 0)
    tokens: tuple[int, int] = (0, 0)
    alone: bool = False
    complete: bool = False


class Journal:
    """A file with a line of JSON for the settings, and one for every finished shard, on disk before the next begins.

    Args:
        path: the file; it is made by `begin`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any] | None, Done]:
        """The settings, or None if nothing was begun, and how far the work is.

        A line that a kill cut short is dropped.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None, Done()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(self.path, len(whole))
        lines = whole.splitlines()
        if not lines:
            return None, Done()
        return json.loads(lines[0]), _done(json.loads(lines[-1])) if len(lines) > 1 else Done()

    def begin(self, settings: dict[str, Any]) -> None:
        """Starts with the settings, and forgets what was there."""
        self.path.unlink(missing_ok=True)
        self._add(settings)

    def add(self, done: Done) -> None:
        """Notes a finished shard; its files must be on disk already."""
        self._add(asdict(done))

    def _add(self, content: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(content).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _done(line: dict[str, Any]) -> Done:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in line.items()}
    return Done(**fields)
