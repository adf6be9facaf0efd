"""Where every number of the page comes from: the file, its hash, and the command that made it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.base.secrets import redact


@dataclass(frozen=True)
class Source:
    """One file that the page was made of; `digest` is the first 12 hex digits of its SHA-256."""

    number: int
    path: str
    digest: str
    command: str


@dataclass
class Sources:
    """All files of a page, numbered from 1 in the order in which they were read."""

    found: list[Source] = field(default_factory=list)

    def add(self, path: Path, command: str) -> int:
        """The number of a file; the same one when it is added again.

        Raises:
            UserError: it cannot be read.
        """
        name = redact(str(path))
        for source in self.found:
            if source.path == name:
                return source.number
        try:
            with Path(path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
        self.found.append(Source(len(self.found) + 1, name, digest[:12], redact(command)))
        return self.found[-1].number
