"""`sinktrain fit` itself under the launcher: two ranks of one machine, and one rank on each of two machines."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launching import LAUNCH, alive, environment, on_two_machines

STEPS = 4


def fit_options(model: Path, data: Path, folder: Path, batch_size: int) -> list[str]:
    options = {
        "model.name": model, "data.path": data, "data.sequence_length": 32, "data.batch_size": batch_size,
        "model.optimizer.warmup_steps": 1, "trainer.max_steps": STEPS, "trainer.log_every_n_steps": 1,
        "trainer.limit_val_batches": 0, "trainer.default_root_dir": folder, "trainer.logger": "CSVLogger",
        "trainer.logger.save_dir": folder, "trainer.enable_checkpointing": "false",
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def losses_of(folder: Path) -> list[float]:
    (metrics,) = folder.glob("**/metrics.csv")
    rows = csv.DictReader(metrics.open())
    return [float(row["train/loss"]) for row in rows if row.get("train/loss")]


@pytest.fixture(scope="module")
def one_process(model_folder: Path, prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run that no launcher has started."""
    folder = tmp_path_factory.mktemp("one")
    options = fit_options(model_folder, prepared_folder, folder, 4)
    command = [sys.executable, "-m", "sinktrain", "fit", *options, "--trainer.accelerator", "cpu"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    losses = losses_of(folder)
    assert len(losses) == STEPS
    return losses


def test_two_ranks_of_one_machine(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    options = fit_options(model_folder, prepared_folder, tmp_path, 2)
    command = [LAUNCH, "--cpus", "2", "--", *options, "--trainer.strategy", "ddp"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"trained {STEPS} steps" in done.stdout and "2 processes" in done.stdout
    assert len(losses_of(tmp_path)) == STEPS and alive(str(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--rdzv {0}:29517", "--master {0}:29518 --node-rank {1}"])
def test_two_machines(
    how: str, one_process: list[float], model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    options = shlex.join(fit_options(model_folder, prepared_folder, tmp_path, 2))

    def command(address: str, number: int) -> str:
        meeting = how.format(address, number)
        return f"{LAUNCH} --nodes 2 {meeting} --cpus 1 -- {options} --trainer.strategy ddp"

    statuses, printed = on_two_machines(command)
    assert statuses == [0, 0], printed
    assert printed.count(f"trained {STEPS} steps") >= 1 and "2 processes" in printed
    assert losses_of(tmp_path) == pytest.approx(one_process, abs=1e-5)
    assert alive(str(tmp_path)) == []
