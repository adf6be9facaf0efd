"""A checkpoint folder from elsewhere, whose maker may have put anything into it, checksums that fit included."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinktrain.cli import main


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def fit_line(model_folder: Path, prepared_folder: Path) -> list[str]:
    return ["fit", "--model.name", str(model_folder), "--data.path", str(prepared_folder), "--data.sequence_length",
            "32", "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false",
            "--model.optimizer.warmup_steps", "0", "--trainer.max_steps"]  # fmt: skip


@pytest.fixture(scope="module")
def good(fit_line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "checkpoints"
    assert main([*fit_line, "2", "--checkpoints.folder", str(folder)]) == 0
    return folder / "step-000000002"


def write(folder: Path, name: str, content: bytes) -> None:
    """Puts a file into a checkpoint, and into its manifest, as its maker would."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def pickled(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, planted: write(folder, name, pickle.dumps(Payload(planted)))


def escaping_tokenizer(folder: Path, planted: Path) -> None:
    record = json.loads((folder / "model.json").read_text())
    record["tokenizer"][f"../../../../../../{planted}"] = "{}"
    write(folder, "model.json", json.dumps(record).encode())


def escaping_manifest(folder: Path, planted: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../step-000000002/model.json"] = manifest["files"]["model.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def escaping_index(folder: Path, planted: Path) -> None:
    """A second rank whose file would be elsewhere."""
    index = json.loads((folder / "rank-00000.json").read_text())
    index["file"]["name"] = str(planted)
    index["pieces"]["weights/model.norm.weight"]["size"] = [7]
    write(folder, "rank-00000.json", json.dumps(index).encode())


BAD = {
    "weights": pickled("rank-00000.safetensors"), "index": pickled("rank-00000.json"), "model": pickled("model.json"),
    "state": pickled("state.json"), "tokenizer": escaping_tokenizer, "manifest": escaping_manifest,
    "pieces": escaping_index,
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("verb", ["export", "fit"])
def test_it_is_refused_and_nothing_happens(
    verb: str, what: str, good: Path, fit_line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (verb, what) in (("export", "state"), ("fit", "tokenizer")):
        pytest.skip("this verb does not read it")
    bad, planted = tmp_path / "step-000000002", tmp_path / "planted"
    shutil.copytree(good, bad)
    BAD[what](bad, planted)
    line = {
        "export": ["export", "--checkpoint", str(bad), "--out", str(tmp_path / "out")],
        "fit": [*fit_line, "4", "--checkpoints.resume", str(bad), "--checkpoints.folder", str(tmp_path / "c")],
    }
    capsys.readouterr()
    assert main(line[verb]) == 2
    err = [each for each in capsys.readouterr().err.splitlines() if each.startswith("sinktrain ")]
    assert len(err) == 1 and "step-000000002" in err[0], err
    assert not planted.exists() and not (tmp_path / "out").exists()


def test_the_good_one_is_taken(good: Path, fit_line: list[str], tmp_path: Path) -> None:
    assert main(["export", "--checkpoint", str(good), "--out", str(tmp_path / "out")]) == 0
    assert main([*fit_line, "4", "--checkpoints.resume", str(good), "--checkpoints.folder", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "step-000000004" / "manifest.json").is_file()
