"""A prepared folder is checked before anything else happens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sinktrain.base.errors import UserError
from sinktrain.data import PreparedText


@pytest.fixture
def copy(prepared_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_folder, tmp_path / "copy"))


def change(folder: Path, keys: list[str], value: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(manifest))


def test_an_untouched_copy_is_fine(copy: Path) -> None:
    PreparedText(copy).check_files()


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["files", "train.bin", "bytes"], 3, r"its train\.bin has [\d,]+ bytes where the manifest says 3;"),
        (["splits", "validation", "tokens"], 3, r"its validation\.bin has [\d,]+ bytes where the manifest says 6;"),
        (["dtype"], "<u4", r"its train\.bin has .* bytes where"),
        (["dtype"], "x9", "damaged"),
        (["files", "train.bin"], None, "damaged"),
        (["files", "validation.documents.npy"], None, "damaged"),
        (["files"], None, "damaged"),
        (["splits"], None, "damaged"),
        (["tokenizer", "fingerprint"], None, "damaged"),
        (["schema"], 99, "version 99"),
    ],
)
def test_a_manifest_that_does_not_match_its_files(copy: Path, keys: list[str], value: Any, words: str) -> None:
    change(copy, keys, value)
    with pytest.raises(UserError, match=words) as raised:
        PreparedText(copy, "--data.sources")
    assert str(raised.value).startswith(f"--data.sources {copy}: ") and "sinktrain prepare" in str(raised.value)


def test_a_cut_and_a_changed_file(copy: Path) -> None:
    whole = (copy / "train.bin").read_bytes()
    (copy / "train.bin").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"train\.bin has changed"):
        PreparedText(copy).check_files()
    (copy / "train.bin").write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"train\.bin has .* bytes"):
        PreparedText(copy)
    (copy / "train.bin").unlink()
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        PreparedText(copy)
