"""What follows when all tokens are written: documents dealt again where one side has none, and the starts of all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinktrain.data.prepared import SPLITS, Tokens, open_tokens, trained_file
from sinktrain.data.shards import records
from sinktrain.data.splitting import held_out


def deal(folder: Path, notes: Path, dtype: np.dtype[Tokens], fraction: float) -> bool:
    """Deals the documents again where all of them are on one side: a few documents, or copies of a few.

    Args:
        folder: of `train.bin` and `validation.bin`, one of which is empty, and what belongs to them.
        notes: the file of records, which is written anew.
        dtype: of a token.
        fraction: of the documents, for validation.

    Returns:
        False if all documents are the same text, so that no document can be held out; nothing is changed then.
    """
    found = np.concatenate(list(records(notes)))
    validation = held_out(found["hash"], fraction)
    if validation.all() or not validation.any():
        return False
    side = int(found["validation"][0])
    ends = np.cumsum(found["tokens"])
    starts = ends - found["tokens"]
    kinds: list[tuple[list[str], np.dtype[Any]]] = [([f"{split}.bin" for split in SPLITS], dtype)]
    if (folder / trained_file(SPLITS[side])).exists():
        kinds.append(([trained_file(split) for split in SPLITS], np.dtype("u1")))
    for names, kind in kinds:
        whole = folder / "all.bin"
        (folder / names[side]).replace(whole)
        values = open_tokens(whole, kind)
        for name, chosen in zip(names, (~validation, validation), strict=True):
            with (folder / name).open("wb") as file:
                for number in np.flatnonzero(chosen):
                    values[starts[number] : ends[number]].tofile(file)
        whole.unlink()
    found["validation"] = validation
    found.tofile(notes)
    return True


def describe(folder: Path, notes: Path) -> dict[str, dict[str, int]]:
    """Writes where the documents of each split start, `train.documents.npy` and so on, and counts what there is.

    Args:
        folder: takes the files.
        notes: the file of records.

    Returns:
        For each split the number of documents, tokens, characters and bytes, and of a chat the tokens trained on.
    """
    kinds = ("documents", "tokens", "characters", "bytes")
    counts: dict[str, dict[str, int]] = {split: dict.fromkeys(kinds, 0) for split in SPLITS}
    for block in records(notes):
        for side, split in enumerate(SPLITS):
            mine = block[block["validation"] == side]
            counts[split]["documents"] += len(mine)
            for key in ("tokens", "characters", "bytes"):
                counts[split][key] += int(mine[key].sum())
    for side, split in enumerate(SPLITS):
        lengths = (block["tokens"][block["validation"] == side] for block in records(notes))
        _write_starts(folder / f"{split}.documents.npy", lengths, counts[split]["documents"])
        if (path := folder / trained_file(split)).exists():
            counts[split]["trained"] = _ones(path)
    return counts


def _ones(path: Path) -> int:
    """How many bytes of a file are 1, all others being 0; a map of it would count as memory in use."""
    with path.open("rb") as file:
        return sum(block.count(1) for block in iter(lambda: file.read(2**20), b""))


def _write_starts(path: Path, lengths: Iterable[NDArray[np.int64]], documents: int) -> None:
    """What `np.save` writes of an array (documents,) int64, without holding it."""
    header = {"descr": "<i8", "fortran_order": False, "shape": (documents,)}
    start = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in lengths:
            ends = start + np.cumsum(block)
            (ends - block).astype("<i8").tofile(file)
            start = int(ends[-1]) if len(ends) else start
