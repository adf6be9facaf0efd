"""What a run was, in its folder and in every logger."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_golden import CONFIG

from sinktrain.cli import main
from sinktrain.training.run_record import append_run, git_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the run is started."""
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "notes.txt").write_text("one")
    git(folder, "add", "notes.txt")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.chdir(folder)
    return folder


def settings(tokenizer: Path, data: Path, out: Path, logger: Any, **trainer: Any) -> dict[str, Any]:
    return {
        "model": {
            "config": CONFIG, "tokenizer": str(tokenizer), "sink": {"kind": "logit"}, "optimizer": {"warmup_steps": 1}
        },
        "data": {"path": str(data), "sequence_length": 32, "batch_size": 4},
        "trainer": {"accelerator": "cpu", "max_steps": 4, "limit_val_batches": 0, "logger": logger,
                    "log_every_n_steps": 1, "default_root_dir": str(out), **trainer},
    }  # fmt: skip


def fit(folder: Path, written: dict[str, Any], *more: str) -> None:
    (folder / "fit.yaml").write_text(yaml.safe_dump(written))
    assert main(["fit", "--config", str(folder / "fit.yaml"), *more]) == 0


def csv_logger(out: Path) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(out), "name": "", "version": "logs"},
    }


def test_a_run_and_its_resumption(
    repository: Path, tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written = settings(tokenizer_folder, prepared_folder, out, csv_logger(out))
    kept = ["--checkpoints.folder", str(out / "kept")]
    fit(tmp_path, written, *kept)
    (repository / "notes.txt").write_text("two")
    fit(tmp_path, written, *kept, "--trainer.max_steps", "6")
    first, second = json.loads((out / "logs" / "run.json").read_text())
    commit = git(repository, "rev-parse", "HEAD")
    assert first["git"]["folder"] == {"commit": commit, "branch": "main", "dirty": False}
    assert second["git"]["folder"] == {"commit": commit, "branch": "main", "dirty": True}
    checkpoints = sorted((out / "kept").glob("step-*"))
    assert first["checkpoint"] is None and second["checkpoint"] == str(checkpoints[0])
    inside = json.loads((checkpoints[1] / "run.json").read_text())
    assert inside["config"]["trainer"]["max_steps"] == 6 and inside["run"]["git"] == second["git"]
    assert first["versions"].keys() >= {"python", "torch", "lightning", "transformers", "sinktrain"}
    assert (first["ranks"], first["device"], first["folder"]) == (1, "cpu", str(repository))
    saved = yaml.safe_load((out / "logs" / "config.yaml").read_text())
    assert saved["model"]["sink"]["kind"] == "logit" and saved["trainer"]["max_steps"] == 6
    hparams = (out / "logs" / "hparams.yaml").read_text()
    assert commit in hparams and "kind: logit" in hparams


def test_without_a_logger_nothing_lands_in_the_working_directory(
    repository: Path, tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    written = settings(tokenizer_folder, prepared_folder, tmp_path / "out", False, enable_checkpointing=False)
    fit(tmp_path, written)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.yaml", "run.json"}
    del written["trainer"]["default_root_dir"]
    fit(tmp_path, written)
    assert {path.name for path in repository.iterdir()} == {".git", "notes.txt"}


def test_tensorboard_has_it_too(
    repository: Path, tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(out)}}
    fit(tmp_path, settings(tokenizer_folder, prepared_folder, out, logger, enable_checkpointing=False))
    folder = out / "lightning_logs" / "version_0"
    events = b"".join(path.read_bytes() for path in folder.glob("events*"))
    commit = git(repository, "rev-parse", "HEAD")
    assert commit.encode() in events and b"model/sink/kind" in events
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = accumulator.EventAccumulator(str(folder))
    history.Reload()
    wanted = {"train/loss", "train/grad_norm", "train/learning_rate", "speed/tokens_per_second", "speed/data_wait",
              "speed/memory_gib", "speed/hours_left"}  # fmt: skip
    assert set(history.Tags()["scalars"]) >= wanted
    assert len(history.Scalars("train/loss")) == 4


def test_wandb_offline_has_it_too(
    repository: Path, tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger",
              "init_args": {"save_dir": str(out), "project": "sinktrain", "offline": True}}  # fmt: skip
    fit(tmp_path, settings(tokenizer_folder, prepared_folder, out, logger, enable_checkpointing=False))
    import wandb

    wandb.finish()
    (record,) = out.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # wandb's own process writes the file, and a busy machine lets it wait
    while b"sequence_length" not in (content := record.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert git(repository, "rev-parse", "HEAD").encode() in content
    assert all(key.encode() in content for key in ("train/loss", "speed/tokens_per_second", "sequence_length"))


def test_git_state(repository: Path, tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    (repository / ".gitignore").write_text("venv\n")
    (repository / "venv").mkdir()
    assert git_state(repository / "venv") is None  # an installed package is not of the repository around it
    found = git_state(repository)
    assert found is not None and found["dirty"] is False  # files that git does not know do not count
    git(repository, "checkout", "-q", "--detach")
    found = git_state(repository)
    assert found is not None and found["branch"] is None


def test_a_damaged_record_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.json"
    append_run(path, {"n": 1})
    append_run(path, {"n": 2})
    assert json.loads(path.read_text()) == [{"n": 1}, {"n": 2}]
    path.write_text('[{"n": 1')
    append_run(path, {"n": 3})
    assert json.loads(path.read_text()) == [{"n": 3}]
    assert (path.parent / "run.damaged.json").read_text() == '[{"n": 1'
