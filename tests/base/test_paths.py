"""Names from data stay in their folder, wherever there are any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_model
from sinktrain.base.paths import inside
from sinktrain.cli import main
from sinktrain.data.prepared import PreparedText

BAD = ["../../x", "..", "a/../../x", "/etc/x", "", ".", "a\\..\\x", "..\\x", "C:\\x", "C:x", "\\\\host\\x", "a:b",
       "a\x00b", "a\nb"]  # fmt: skip


@pytest.mark.parametrize("name", [*BAD, None, 3])
@pytest.mark.parametrize("links", [False, True])
def test_names_that_leave_their_folder(tmp_path: Path, name: Any, links: bool) -> None:
    with pytest.raises(UserError, match=r"--checkpoint x\.ckpt: holds a file"):
        inside(tmp_path, name, "--checkpoint x.ckpt", links=links)


@pytest.mark.parametrize("name", ["a", "a/b.json", "..a", "a..b/c", "é.txt"])
def test_plain_names(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, "--x") == tmp_path / name


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "away").symlink_to(tmp_path)
    with pytest.raises(UserError, match="away/x"):
        inside(folder, "away/x", "--x")
    assert inside(folder, "away/x", "--x", links=True) == folder / "away" / "x"


@pytest.mark.parametrize("name", ["../../planted", "/tmp/planted", "..", "..\\planted"])
def test_the_tokenizer_of_a_checkpoint(
    plain_checkpoint: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(plain_checkpoint, weights_only=True)
    name = name.replace("/tmp", str(tmp_path))
    checkpoint["sinktrain"]["tokenizer"][name] = "planted"
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    assert main(["export", "--checkpoint", str(tmp_path / "bad.ckpt"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "does not stay in its folder" in err and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bad.ckpt"}


def test_the_manifest_of_prepared_text(prepared_folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((prepared_folder / "manifest.json").read_text())
    (tmp_path / "data").mkdir()
    for path in prepared_folder.iterdir():
        if path.is_file():
            (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "x").write_text("x")
    manifest["files"]["../x"] = {"bytes": 1, "sha256": "0"}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not stay in its folder"):
        PreparedText(tmp_path / "data")


def test_the_index_of_a_model_in_parts(model_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(model_folder))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    load_model(str(tmp_path / "model"))
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    part = tmp_path / "model" / content["weight_map"][name]
    (tmp_path / part.name).write_bytes(part.read_bytes())
    content["weight_map"][name] = f"../{part.name}"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not stay in its folder"):
        load_model(str(tmp_path / "model"))
