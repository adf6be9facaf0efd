"""Everything that is promised stands in the logs: with the shipped config, through the front door, read back."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from watched_runs import CONFIG

from sinktrain.cli import main

ROOT = Path(__file__).parents[2]
MONITOR = ROOT / "configs" / "callbacks" / "monitor.yaml"
ALWAYS = {
    "train/loss", "train/grad_norm", "train/learning_rate", "train/skipped_steps", "val/loss",
    "speed/tokens_per_second", "speed/mfu", "speed/data_wait", "speed/memory_gib", "speed/hours_left",
    *(f"sinks/text_{number}" for number in (1, 2, 3, 4)), *(f"sinks/text_{number}_heads" for number in (1, 2, 3, 4)),
    "sinks/cost_share", "probe/ppl_0+20", "probe/ppl_1+19", "probe/ppl_4+16", "probe/cost_share",
}  # fmt: skip
OWN = {
    "token": {"sinks/sink", "sinks/sink_heads"},
    "two": {"sinks/sink_0", "sinks/sink_0_heads", "sinks/sink_1", "sinks/sink_1_heads", "probe/ppl_2+18"},
    "kv": {"sinks/outlet", "sinks/outlet_heads"},
}
SINKS = {"token": {"kind": "token"}, "two": {"kind": "token", "count": 2}, "kv": {"kind": "kv"}}


def small_monitor(folder: Path) -> Path:
    """The shipped config, its numbers made small."""
    settings = yaml.safe_load(MONITOR.read_text())
    small = {"every_n_steps": 2, "sequences": 4, "length": 20, "size": 20, "tokens": 60, "chunk": 16}
    for each in settings["trainer"]["callbacks+"]:
        each["init_args"] |= {key: small[key] for key in each["init_args"].keys() & small.keys()}
    (folder / "monitor.yaml").write_text(yaml.safe_dump(settings))
    return folder / "monitor.yaml"


def configs(tokenizer: Path, data: Path, folder: Path, kind: str) -> list[str]:
    """Options for `sinktrain fit`: six steps."""
    loggers = "lightning.pytorch.loggers"
    settings: dict[str, Any] = {
        "model": {"config": CONFIG, "tokenizer": str(tokenizer), "sink": SINKS[kind], "optimizer": {"warmup_steps": 1}},
        "data": {"path": str(data), "sequence_length": 32, "batch_size": 2},
        "throughput": {"peak_flops": 1e12},
        "trainer": {
            "accelerator": "cpu", "max_steps": 6, "val_check_interval": 3, "limit_val_batches": 1,
            "log_every_n_steps": 2, "enable_checkpointing": False,
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}],
            "logger": [
                {"class_path": f"{loggers}.CSVLogger", "init_args": {"save_dir": f"{folder}", "name": "csv"}},
                {"class_path": f"{loggers}.TensorBoardLogger", "init_args": {"save_dir": f"{folder}", "name": "board"}},
            ],
        },
    }  # fmt: skip
    (folder / "fit.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(folder / "fit.yaml"), "--config", str(small_monitor(folder))]


def read_csv(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What was logged, as (step, value), by key."""
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [(int(row["step"]), float(row[key])) for row in rows if row[key]] for key in rows[0]}


@pytest.mark.parametrize("kind", list(OWN))
def test_every_promised_key_is_in_the_logs(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: str
) -> None:
    assert main(["fit", *configs(tokenizer_folder, prepared_folder, tmp_path, kind)]) == 0
    promised = ALWAYS | OWN[kind]
    filled = read_csv(tmp_path)
    assert {key for key in filled if "/" in key} == promised
    # Lightning counts steps from 0; a look stands at the number of steps that are done.
    assert [step for step, _ in filled["train/loss"]] == [step for step, _ in filled["speed/mfu"]] == [1, 3, 5]
    assert (
        [step for step, _ in filled["sinks/text_1"]] == [step for step, _ in filled["probe/ppl_1+19"]] == [0, 2, 4, 6]
    )
    assert all(0 <= value <= 1 for key in promised if key.startswith("sinks/") for _, value in filled[key])
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = accumulator.EventAccumulator(str(tmp_path / "board" / "version_0"))
    history.Reload()
    assert set(history.Tags()["scalars"]) >= promised
    for key in promised:
        found = [(event.step, event.value) for event in history.Scalars(key)]
        assert found == [(step, pytest.approx(value, rel=1e-5)) for step, value in filled[key]]
    assert (tmp_path / "csv" / "version_0" / "sinks.jsonl").read_text().count("\n") == 4
    for name in ("csv", "board"):
        assert "commit" in (tmp_path / name / "version_0" / "hparams.yaml").read_text()


def test_the_config_adds_to_other_callbacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its first line says; the numbers that it shows are the defaults."""
    first = {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}]}}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "first.yaml"), "--config", str(MONITOR), "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    names = ["ModelSummary", "SinkMonitor", "StreamingProbe"]
    assert [each["class_path"].split(".")[-1] for each in found] == names
    with pytest.raises(SystemExit):
        main(["fit", "--trainer.callbacks+=sinktrain.monitoring.SinkMonitor",
              "--trainer.callbacks+=sinktrain.monitoring.StreamingProbe", "--print_config"])  # fmt: skip
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"] == found[1:]


@pytest.mark.slow
def test_two_ranks_log_what_one_does(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """Two real processes (gloo) on the same global batches; one of them writes, and neither waits for ever."""
    found, runs = [], []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        more = ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp_fork" if ranks > 1 else "auto",
                "--data.batch_size", str(4 // ranks), "--trainer.val_check_interval", "100"]  # fmt: skip
        arguments = configs(tokenizer_folder, prepared_folder, folder, "two")
        done = subprocess.run(
            [sys.executable, "-m", "sinktrain.cli", "fit", *arguments, *more], capture_output=True, text=True,
            timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(read_csv(folder))
        runs.append(json.loads((folder / "csv" / "version_0" / "run.json").read_text()))
    assert [[run["ranks"] for run in each] for each in runs] == [[1], [2]]
    keys = [key for key in found[0] if key.split("/")[0] in ("train", "sinks", "probe") and "cost" not in key]
    assert len(keys) >= 4 + 12 + 4
    for key in keys:
        assert found[1][key] == [(step, pytest.approx(value, rel=2e-3, abs=1e-5)) for step, value in found[0][key]], key
    assert (tmp_path / "2" / "csv" / "version_0" / "sinks.jsonl").read_text().count("\n") == 4
