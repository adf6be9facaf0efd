"""Documents from anywhere: the standard library, local files, folders and globs, or a Hugging Face dataset."""

from __future__ import annotations

import glob
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.data.readers import JSON, OPTION, PARQUET, TEXT, Take, as_text, read_file, read_hub

_KNOWN = (*TEXT, *JSON, *PARQUET)
_NEEDED = "name a .txt, .jsonl, .json or .parquet file (.gz and .zst are read too), a folder or glob of these"


def documents(
    source: str,
    field: str = "text",
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    start: int = 0,
    take: Take = as_text,
) -> Iterator[str]:
    """The documents of `source`, in a fixed order, one at a time.

    Args:
        source: `stdlib`, a file, a folder, a glob, or the name of a Hugging Face dataset.
        field: the column that holds the text, for every source but `stdlib` and .txt.
        split: of a Hugging Face dataset.
        subset: of a Hugging Face dataset.
        streaming: read a Hugging Face dataset over the network instead of downloading it first.
        start: how many documents are left out at the beginning; a Hugging Face dataset skips them without reading.
        take: makes a document of what the column holds.

    Raises:
        UserError: nothing of that name, an empty file, text that is not UTF-8, a missing field, an unreachable hub.
    """
    if source == "stdlib":
        return islice(_standard_library(), start, None)
    files = local_files(source)
    if files is None:
        return read_hub(source, field, split, subset, streaming, start, take)
    return islice((text for path in files for text in read_file(path, field, take)), start, None)


def is_on_hub(source: str) -> bool:
    """Whether `source` can only be the name of a Hugging Face dataset.

    Raises:
        UserError: as `documents`.
    """
    return source != "stdlib" and local_files(source) is None


def local_files(source: str) -> list[Path] | None:
    """The files that `source` names, sorted, or None when it can only be the name of a Hugging Face dataset.

    Raises:
        UserError: no such file, one without text, or a folder or glob that holds none.
    """
    if not source:
        raise UserError(f"{OPTION}: is an empty name; {_NEEDED}, `stdlib`, or a Hugging Face dataset.")
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(_KNOWN))
        if not found:
            raise UserError(f"{OPTION} {source}: is a folder without text; {_NEEDED}.")
        return found
    if path.exists():
        if not path.name.endswith(_KNOWN):
            raise UserError(f"{OPTION} {source}: is not a kind of text that is read; {_NEEDED}.")
        if path.stat().st_size == 0:
            raise UserError(f"{OPTION} {source}: is empty; name a file with text.")
        return [path]
    if any(character in source for character in "*?["):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute one)
        found = sorted(file for file in matches if file.is_file() and file.name.endswith(_KNOWN))
        if not found:
            raise UserError(f"{OPTION} {source}: matches no text file; {_NEEDED}.")
        return found
    if source.startswith((".", "/", "~")) or source.endswith(_KNOWN) or source.count("/") > 1:
        raise UserError(f"{OPTION} {source}: no such file or folder; check the path.")
    return None


def standard_library_files() -> list[Path]:
    """Every .py file of this Python's standard library but its tests, sorted by path: about 12 MB.

    Installed packages are left out. `test` and `tests` folders are more than half of all bytes and are absent from
    many installations; without them, 3.11 has 12.6 MB in 799 files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests"}
    found = (path for path in root.rglob("*.py") if left_out.isdisjoint(path.relative_to(root).parts[:-1]))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _standard_library() -> Iterator[str]:
    for path in standard_library_files():
        try:
            yield path.read_bytes().decode()
        except UnicodeDecodeError:
            continue  # a few files are in other encodings on purpose
