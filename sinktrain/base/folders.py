"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinktrain.base.errors import UserError


@contextmanager
def new_folder(path: Path, option: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary sibling of `path` to write into, and renames it to `path` when the block ends well.

    When the block raises, the sibling is removed and `path` is what it was before.

    Args:
        path: the folder to make; its parents are made too.
        option: the command-line option that named `path`, for the error message.
        overwrite: replace an existing folder, which is removed only once the new one is complete.

    Raises:
        UserError: `path` exists and holds something, and `overwrite` is false, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is a file; name a folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{option} {path}: exists already; choose another folder, or pass --overwrite true.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        draft.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a result is to be read by others
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); choose another folder.") from error
    try:
        yield draft
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / path.name)
            draft.replace(path)
            shutil.rmtree(old)
        else:
            draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
