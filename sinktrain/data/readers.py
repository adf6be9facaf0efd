"""What is inside one file, or one Hugging Face dataset: its documents, one at a time, in little memory."""

from __future__ import annotations

import glob
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias, cast

from sinktrain.base.errors import UserError

OPTION = "--source"
TEXT = (".txt", ".txt.gz", ".txt.zst")
JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
PARQUET = (".parquet",)
_MIXED = "arrow.json"  # the type of values that are not all of one type
_ROWS = 100  # rows in memory at once, beside what `datasets` reads ahead


class Place(NamedTuple):
    """Where a value was found: the source or its file, the column, and the row, counted from 1."""

    source: str
    field: str
    row: int


Take: TypeAlias = Callable[[object, Place], str]
"""Makes a document of the value of a column, an empty one of what there is to skip; raises UserError."""


def as_text(value: object, place: Place) -> str:
    """The value, if it is text; nothing there is an empty document."""
    if value is None:
        return ""
    if not isinstance(value, str):
        advice = "name another with --field"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            advice += ", or pass --chat true for conversations"
        raise UserError(
            f"{OPTION} {place.source}: its field {place.field!r} holds {type(value).__name__}, not text; {advice}."
        )
    return value


def read_file(path: Path, field: str, take: Take = as_text) -> Iterator[str]:
    """The documents of one file, whose name ends in one of `TEXT`, `JSON` or `PARQUET`.

    Raises:
        UserError: it is not UTF-8, not what its name says, or has no such field.
    """
    if path.suffix == ".zst":
        _check_frames(path)
    yield from _split_at_form_feeds(path) if path.name.endswith(TEXT) else _read_rows(path, field, take)


def _split_at_form_feeds(path: Path) -> Iterator[str]:
    """The documents of a text file: one, or several with a line of a single form feed between them."""
    lines: list[str] = []
    for line in _lines(path):
        if line.rstrip("\r\n") == "\f":
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends as they are; a byte order mark at the start is no text."""
    place = 0
    try:
        with _open(path) as file:
            for line in file:
                yield line.decode().removeprefix("\ufeff" if place == 0 else "")
                place += len(line)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{OPTION} {path}: is not UTF-8 at byte {place + error.start:,} (0x{byte:02x}); convert it, for example "
            "with `iconv -t UTF-8`."
        ) from error
    except _unreadable() as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(zstandard.open(path))
    return path.open("rb")


def _check_frames(path: Path) -> None:
    """Decompresses a .zst file once for nothing: its readers take one that was cut short for a whole one."""
    import zstandard

    decoder = None
    with path.open("rb") as file:
        while block := file.read(2**20):
            while block:
                decoder = decoder or zstandard.ZstdDecompressor().decompressobj()
                try:
                    decoder.decompress(block)
                except zstandard.ZstdError as error:
                    raise _damaged(path, error) from error
                block = decoder.unused_data  # the next frame begins in it
                if decoder.eof:
                    decoder = None
    if decoder is not None:
        raise _damaged(path, EOFError("it ends in the middle"))


def _read_rows(path: Path, field: str, take: Take) -> Iterator[str]:
    """The texts of a .jsonl, .json or .parquet file, read in place by `streaming`: in little memory, without a copy."""
    with _quiet_datasets():
        from datasets import load_dataset

        # With a batch size of its own, a file with zero rows is no error; a parquet file's default is its first group.
        kind: dict[str, Any] = {"path": "json"} if path.name.endswith(JSON) else {"path": "parquet", "batch_size": 1000}
        try:
            place = glob.escape(str(path.resolve()))  # `data_files` are patterns
            rows = load_dataset(**kind, data_files=[place], split="train", streaming=True)
            yield from _column(rows, Place(str(path), field, 0), take)
        except StopIteration:
            return  # how `datasets` says that a file decompresses to nothing
        except UnicodeDecodeError:
            for _ in _lines(path):  # its position counts from some block's start; this one finds and tells the byte
                pass
            raise
        except _unreadable() as error:
            raise _damaged(path, error) from error


def read_hub(
    name: str,
    field: str,
    split: str,
    subset: str | None,
    streaming: bool,
    start: int = 0,
    take: Take = as_text,
) -> Iterator[str]:
    """The documents of a Hugging Face dataset; the arguments are those of `sinktrain.data.sources.documents`.

    Raises:
        UserError: there is none of that name, split and subset, or the hub is out of reach.
    """
    with _quiet_datasets():
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        try:
            rows = load_dataset(name, subset, split=split, streaming=streaming)
            yield from _column(rows.skip(start) if start else rows, Place(name, field, start), take)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            raise UserError(
                f"{OPTION} {name}: is no file here, and no Hugging Face dataset could be read by that name "
                f"({_first_line(error)}); check the name, --subset, --split and the network."
            ) from error


def _column(rows: Any, place: Place, take: Take) -> Iterator[str]:
    """One column of a dataset, a batch at a time: a dictionary for every row takes ten times as long."""
    for table in rows.with_format("arrow").iter(batch_size=_ROWS):
        names = table.column_names
        if place.field not in names:
            raise UserError(
                f"{OPTION} {place.source}: has no field {place.field!r}; choose --field from {', '.join(names)}."
            )
        column = table[place.field]
        is_mixed = _MIXED in str(column.type)
        for value in column.to_pylist():
            place = place._replace(row=place.row + 1)
            yield take(_plain(value, column.type) if is_mixed else value, place)


def _plain(value: Any, kind: Any) -> Any:
    """A value without JSON inside it: what is not of one type in all rows, `datasets` keeps as JSON, rows or parts."""
    if value is None:
        return None
    if getattr(kind, "extension_name", None) == _MIXED:
        return json.loads(value)
    if isinstance(value, list):
        return [_plain(each, kind.value_type) for each in value]
    if isinstance(value, dict):
        return {part.name: _plain(value[part.name], part.type) for part in kind}
    return value


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No log lines of `datasets` and the hub (their errors are raised all the same), no bars but on a terminal."""
    import datasets
    import huggingface_hub

    levels = datasets.logging.get_verbosity(), huggingface_hub.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(levels[0])
        huggingface_hub.logging.set_verbosity(levels[1])
        if not bars:
            datasets.enable_progress_bars()


def _unreadable() -> tuple[type[Exception], ...]:
    """What a damaged file makes its readers raise."""
    import zstandard

    return (OSError, ValueError, EOFError, zlib.error, zstandard.ZstdError)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{OPTION} {path}: cannot be read ({_first_line(error)}); check the file.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
