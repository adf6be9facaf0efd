"""File names that come from outside, and stay where they belong."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from sinktrain.base.errors import UserError


def inside(folder: Path, name: object, source: str, *, links: bool = False) -> Path:
    """The path in `folder` of a file whose name was found in data: a checkpoint, a manifest, an archive.

    Args:
        folder: where the file belongs.
        name: parts with `/` between them.
        source: where the name was found, as option and value, for the error message.
        links: whether a link may lead elsewhere, as those of the hub's cache do; for files that are only read.

    Raises:
        UserError: the name leads out of the folder, on this system or another, or is none.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise _refused(name, source)
    path = folder / name
    if not links and not path.resolve().is_relative_to(folder.resolve()):
        raise _refused(name, source)
    return path


def _is_plain(name: str) -> bool:
    """Whether it has only forward parts, under the rules of POSIX and of Windows."""
    if not name.isprintable() or "\\" in name or ":" in name:  # `C:x` and `x:stream` mean something on Windows
        return False
    parts = PurePosixPath(name).parts
    absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    return bool(parts) and not absolute and ".." not in parts


def _refused(name: object, source: str) -> UserError:
    shown = repr(name if len(str(name)) < 100 else f"{str(name)[:100]}...")
    return UserError(
        f"{source}: holds a file by the name of {shown}, which does not stay in its folder; do not trust it, and use "
        "another from a source that you know."
    )
