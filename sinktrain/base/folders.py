"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sinktrain.base.errors import UserError

_LOCK = "lock"


@contextmanager
def new_folder(
    path: Path, option: str, *, overwrite: bool = False, reads: Iterable[str | Path | None] = ()
) -> Iterator[Path]:
    """Gives a temporary sibling of `path` to write into, and renames it to `path` when the block ends well.

    When the block raises, the sibling is removed and `path` is what it was before.

    Args:
        path: the folder to make; its parents are made too.
        option: the command-line option that named `path`, for the error message.
        overwrite: replace an existing folder, which is removed only once the new one is complete.
        reads: what the new folder is made from; none of it may lie in the one that is replaced.

    Raises:
        UserError: `path` exists and holds something, and `overwrite` is false, or it holds one of `reads`, or it cannot
            be written.
    """
    path = _free(path, option, overwrite, reads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        draft.chmod(0o777 & ~umask())  # mkdtemp makes it private; a result is to be read by others
    except OSError as error:
        raise _unwritable(path, option, error) from error
    try:
        yield draft
        _put(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@dataclass
class Draft:
    """A folder in the making that a kill does not remove.

    Attributes:
        result: becomes the finished folder.
        notes: for files that are needed until then.
        keep: whether both stay when the block raises, so that a later one goes on; a kill keeps them anyway.
    """

    result: Path
    notes: Path
    keep: bool = False

    def clear(self) -> None:
        """Removes what is in both, but for the lock."""
        for entry in (*self.result.iterdir(), *self.notes.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()


@contextmanager
def kept_folder(
    path: Path, option: str, *, overwrite: bool = False, reads: Iterable[str | Path | None] = ()
) -> Iterator[Draft]:
    """Like `new_folder`, but what was written outlives a kill: the next block for `path` gets it again.

    It lies beside `path`, as `.NAME.draft`, and is locked, so that two processes never write into it.

    Args:
        path: the folder to make; its parents are made too.
        option: the command-line option that named `path`, for the error message.
        overwrite: replace an existing folder, which is removed only once the new one is complete.
        reads: what the new folder is made from; none of it may lie in the one that is replaced.

    Raises:
        UserError: as `new_folder`, or another process is making `path`.
    """
    path = _free(path, option, overwrite, reads)
    place = draft_of(path)
    draft = Draft(place / "result", place / "notes")
    try:
        for folder in (draft.result, draft.notes):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(draft.notes / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{option} {path}: is being made by another process; wait, or choose another folder."
        ) from error
    except OSError as error:
        raise _unwritable(path, option, error) from error
    try:
        _free(path, option, overwrite, reads)  # the other process may have made it just before the lock was ours
        yield draft
        _put(draft.result, path)
        draft.keep = False
    finally:
        if not draft.keep:
            _remove(place)
        lock.release()


def draft_of(path: Path) -> Path:
    """Where `kept_folder` makes `path`; its notes are in `notes`."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  # `.` has no name; a link is kept as it is
    return path.with_name(f".{path.name}.draft")


def _free(path: Path, option: str, overwrite: bool, reads: Iterable[str | Path | None]) -> Path:
    """The folder, as an absolute path, if it may be made."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is a file; name a folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{option} {path}: exists already; choose another folder, or pass --overwrite true.")
    if Path.cwd().is_relative_to(path.resolve()):
        raise UserError(f"{option} {path}: is the folder that you are in, or holds it; name another one.")
    for each in reads:
        if each is not None and Path(each).exists() and Path(each).resolve().is_relative_to(path.resolve()):
            raise UserError(f"{option} {path}: {each} lies there and would be lost; choose another folder.")
    return Path(os.path.abspath(path))  # noqa: PTH100


def _unwritable(path: Path, option: str, error: OSError) -> UserError:
    return UserError(f"{option} {path}: cannot be written ({error.strerror}); choose another folder.")


def _put(draft: Path, path: Path) -> None:
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        path.replace(old / path.name)
        draft.replace(path)
        shutil.rmtree(old)
    else:
        draft.replace(path)


def _remove(place: Path) -> None:
    """Removes a draft under another name, so that a process that comes meanwhile begins one of its own."""
    gone = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    place.replace(gone / place.name)
    shutil.rmtree(gone, ignore_errors=True)


def umask() -> int:
    """What this process leaves out of the permissions of new files."""
    current = os.umask(0)
    os.umask(current)
    return current
