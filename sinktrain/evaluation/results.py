"""A result folder: `results.json` with the figures, `nll.npz` with the NLL of every token under every cache.

With `--both_rules`, results.json holds `position_rules` too, and nll.npz one array more, such as `1+255 original`.
"""

from __future__ import annotations

import json
import os
import platform
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.base.folders import new_folder
from sinktrain.base.secrets import redact
from sinktrain.evaluation.grid import NLL, Row, full_cache

SCHEMA = 1


@dataclass(frozen=True)
class Results:
    """What `sinktrain evaluate` found: `record` as in results.json, `nll` by cache name, the document of each token."""

    record: dict[str, Any]
    nll: dict[str, NLL]
    documents: NDArray[np.int64]

    @property
    def size(self) -> int:
        """C, the size of the largest cache."""
        return int(self.record["cache_size"])

    def full_cache(self) -> Any:
        """(T,) the tokens predicted with a full cache."""
        sink = self.record["model"]["sink"]
        count = sink["count"] if sink and sink["kind"] == "token" else 0
        return full_cache(self.record["text"]["tokens"], count, self.size)


def write_results(path: Path, record: dict[str, Any], rows: list[Row], *, overwrite: bool) -> None:
    """Writes a result folder, whole or not at all."""
    with new_folder(path, "--out", overwrite=overwrite) as folder:
        arrays: dict[str, Any] = {row.name: row.nll.astype(np.float32) for row in rows}
        np.savez_compressed(folder / "nll.npz", **arrays)
        (folder / "results.json").write_text(json.dumps(redact(record), indent=1) + "\n")


def read_results(path: Path, option: str = "--results") -> Results:
    """Reads a result folder.

    Raises:
        UserError: it is not one, or of another version.
    """
    try:
        record = json.loads((path / "results.json").read_text())
        with np.load(path / "nll.npz", allow_pickle=False) as arrays:
            nll = {name: arrays[name].astype(np.float64) for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{option} {path}: is not a result folder; name one of `sinktrain evaluate`.") from error
    if record.get("schema") != SCHEMA:
        raise UserError(f"{option} {path}: was written by another version; run `sinktrain evaluate` again.")
    return Results(record, nll, np.zeros(record["text"]["tokens"], dtype=np.int64))


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
