"""A result folder: `results.json` with the figures, `nll.parquet` with the NLL of every token.

nll.parquet has a row a token of the text: `position` (int32, from 0), `token` (int32), `document` (int32, its number in
the source or prepared folder, from 0), and one float32 column for each row of the table, by its name (`1+255`, `1+255
original`, `recompute`), null where the token was not predicted. An evaluation of several models or texts has a result
folder for each, and `grid.json` says where.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.base.paths import inside
from sinktrain.base.records import as_json
from sinktrain.evaluation.grid import NLL, Row, full_cache

SCHEMA = 2
FILE = "results.json"
ARRAYS = "nll.parquet"
GRID = "grid.json"
_PLACE = ("position", "token", "document")
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Results:
    """What `sinktrain evaluate` found about a model and a text.

    Attributes:
        record: as in results.json.
        nll: (T,) by name of the row, NaN where a token was not predicted.
        documents: (T,) the number of each token's document.
    """

    record: dict[str, Any]
    nll: dict[str, NLL]
    documents: NDArray[np.int64] = field(default_factory=lambda: _NONE)

    @property
    def size(self) -> int:
        """C, the size of the largest cache."""
        return int(self.record["cache_size"])

    def full_cache(self) -> Any:
        """(T,) the tokens predicted with a full cache."""
        sink = self.record["model"]["sink"]
        count = sink["count"] if sink and sink["kind"] == "token" else 0
        return full_cache(self.record["text"]["tokens"], count, self.size)


@dataclass(frozen=True)
class Cell:
    """One result folder of an evaluation of several models or texts.

    Attributes:
        model: its label.
        group: models of a group differ in their seed alone.
        seed: where it is known.
        text: its name.
        results: what was found.
    """

    model: str
    group: str
    seed: int | None
    text: str
    results: Results


def write_results(folder: Path, record: dict[str, Any], rows: list[Row], text: dict[str, Any]) -> None:
    """Writes results.json and nll.parquet; `text` has the arrays `tokens` and `documents` (T,)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "position": np.arange(len(text["tokens"]), dtype=np.int32),
        "token": text["tokens"].astype(np.int32),
        "document": text["documents"].astype(np.int32),
    }
    columns |= {row.name: pa.array(row.nll, from_pandas=True) for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / ARRAYS, compression="zstd")
    (folder / FILE).write_text(as_json(record))


def read_results(path: Path, option: str = "--results") -> Results:
    """Reads a result folder.

    Raises:
        UserError: it is not one, or of another version, or one of several.
    """
    import pyarrow.parquet as pq

    if (path / GRID).is_file():
        raise UserError(f"{option} {path}: holds several results; name one of the folders in it.")
    try:
        record = json.loads((path / FILE).read_text())
        if record.get("schema") == SCHEMA:
            record["model"]["sink"], record["text"]["tokens"], record["cache_size"], record["rows"]
            table = pq.read_table(path / ARRAYS)
            arrays = {name: table[name].to_numpy() for name in table.column_names}
            documents = arrays["document"].astype(np.int64)
            nll = {name: array.astype(np.float64) for name, array in arrays.items() if name not in _PLACE}
            return Results(record, nll, documents)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{option} {path}: is not a result folder; name one of `sinktrain evaluate`.") from error
    raise UserError(f"{option} {path}: was written by another version; run `sinktrain evaluate` again.")


def read_cells(path: Path, option: str = "--results") -> list[Cell]:
    """Reads an evaluation of one model and text, or of several.

    Raises:
        UserError: as `read_results`.
    """
    if not (path / GRID).is_file():
        found = read_results(path, option)
        model, text = found.record["model"], found.record["text"]["name"]
        return [Cell(model["label"], model["group"], model["seed"], text, found)]
    place = f"{option} {path}"
    try:
        grid = json.loads((path / GRID).read_text())
        if grid["schema"] != SCHEMA:
            raise UserError(f"{place}: was written by another version; run `sinktrain evaluate` again.")
        cells = [
            Cell(
                each["model"], each["group"], each["seed"], each["text"],
                read_results(inside(path, each["folder"], place), option),
            )
            for each in grid["cells"]
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: its {GRID} is damaged; run `sinktrain evaluate` again.") from error
    return cells


def environment() -> dict[str, str]:
    """Versions and machine, as needed to repeat a run."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["cores"] = str(os.cpu_count())
    for package in ("sinktrain", "torch", "transformers", "tokenizers", "lightning", "datasets", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
