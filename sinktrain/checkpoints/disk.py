"""File operations that outlive a power cut. All of a checkpoint's go through here, one call each.

`operation` is called before each of them, for tests that fail between any two.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple


class Written(NamedTuple):
    """What a file is: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


operation: Callable[[str, Path], None] = lambda name, path: None  # noqa: E731


def make_folder(path: Path) -> None:
    """Makes a folder and its parents."""
    operation("make", path)
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> Written:
    """Writes a file whose bytes are on the disk when this returns."""
    digest, size = hashlib.sha256(), 0
    operation("open", path)
    with path.open("wb") as file:
        operation("write", path)
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
        operation("flush", path)
        file.flush()
        operation("sync", path)
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Puts the names in a folder on the disk, which `fsync` of the files does not."""
    operation("sync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Gives a folder its name, and puts that on the disk."""
    operation("rename", old)
    old.rename(new)
    sync_folder(new.parent)


def remove(path: Path) -> None:
    """Removes a folder: first it loses its name, so that half of it is never taken for a whole one."""
    gone = path
    if not path.name.startswith(".gone-"):
        gone = path.with_name(f".gone-{path.name.lstrip('.')}-{time.time_ns()}")
        rename(path, gone)
    operation("remove", gone)
    shutil.rmtree(gone, ignore_errors=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
