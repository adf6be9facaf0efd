"""Files read and checked: whatever is wrong with one becomes one sentence that says how to write it anew."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sinktrain.base.errors import UserError
from sinktrain.base.secrets import redact


def read_text(path: Path, option: str) -> str:
    """The text of a file.

    Raises:
        UserError: it is missing, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{option} {path}: cannot be read ({reason}); check the path.") from error


def read_json(
    path: Path, option: str, verb: str, schemas: Sequence[int | None] = (1,), *, clean: bool = True
) -> dict[str, Any]:
    """The record in a file, without secrets.

    Args:
        path: of the file.
        option: that named it.
        verb: that writes such files.
        schemas: that are read.
        clean: blot out secrets; a record whose numbers go by names such as `token` must not be, and its texts must be
            cleaned where they are shown.

    Raises:
        UserError: it is missing, no JSON, or of a schema that is not among `schemas`.
    """
    text = read_text(path, option)
    with Fields(option, path, verb):
        data = cast("dict[str, Any]", redact(json.loads(text)) if clean else json.loads(text))
        schema = data.get("schema")
    if schema not in schemas:
        known = " or ".join(str(each) for each in schemas)
        raise UserError(
            f"{option} {path}: has schema {schema}, and this version reads {known}; write it again with `{verb}`."
        )
    return data


class Fields:
    """Turns whatever a malformed file makes Python raise into one sentence that says how to write it anew."""

    def __init__(self, option: str, path: Path, verb: str) -> None:
        self.place, self.verb = f"{option} {path}", verb

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise UserError(f"{self.place}: lacks `{error.args[0]}`; write it again with `{self.verb}`.") from error
        if isinstance(error, (TypeError, ValueError, OverflowError, AttributeError, IndexError)):
            raise UserError(f"{self.place}: is malformed ({error}); write it again with `{self.verb}`.") from error


def read_columns(path: Path, option: str, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The columns of a Parquet file that it has of `names`; floats with NaN for null.

    Raises:
        UserError: it is missing or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    again = "write it again with `sinktrain evaluate`"
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in names if name in file.schema_arrow.names]
            table = file.read(columns=wanted)
    except FileNotFoundError as error:
        raise UserError(f"{option} {path}: no such file; {again}.") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{option} {path}: is damaged; {again}.") from error
    return {name: np.asarray(table.column(name).to_numpy()) for name in wanted}


def number(value: Any) -> float:
    """A number, or NaN for null."""
    return math.nan if value is None else float(value)


def pair(value: Any) -> tuple[float, float]:
    """An interval, or NaN for null."""
    if value is None:
        return math.nan, math.nan
    low, high = value
    return number(low), number(high)
