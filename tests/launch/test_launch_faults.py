"""Launcher, fit, checkpoints and watchdog together: a rank is killed, or all are asked to stop, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launching import LAUNCH, alive, environment
from safetensors.torch import load_file

from sinktrain.checkpoints.store import found

STEPS = 40


def command(model: Path, data: Path, folder: Path, *launcher: str) -> list[str]:
    options = {
        "model.name": model, "data.path": data, "data.sequence_length": 32, "data.batch_size": 8,
        "model.optimizer.warmup_steps": 1, "trainer.max_steps": STEPS, "trainer.limit_val_batches": 0,
        "trainer.default_root_dir": folder, "trainer.logger": "false", "trainer.precision": "32-true",
        "checkpoints.folder": folder / "checkpoints", "checkpoints.every_n_steps": 2, "watchdog.dead_after": 5,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    config = Path(LAUNCH).parents[1] / "configs/trainer/ddp.yaml"
    return [LAUNCH, "--cpus", "2", *launcher, "--", "--config", str(config), *words]


def wait_for_step(folder: Path, least: int) -> None:
    end = time.monotonic() + 90
    while not any(each.step >= least for each in found(folder / "checkpoints")):
        assert time.monotonic() < end
        time.sleep(0.02)


def ranks_of(folder: Path) -> list[int]:
    """The processes of the two ranks, in their order."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            variables = (path / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and (rank := re.search(rb"\0RANK=(\d)\0", variables)):
            numbers.append((int(rank[1]), int(path.name)))
    return [number for _, number in sorted(numbers)]


def weights(folder: Path) -> dict[str, bytes]:
    newest = found(folder / "checkpoints")[0]
    assert newest.step == STEPS
    newest.check()
    parts = [load_file(path) for path in sorted(newest.path.glob("*.safetensors"))]
    return {f"{n}/{name}": tensor.numpy().tobytes() for n, part in enumerate(parts) for name, tensor in part.items()
            if not name.startswith("rank/")}  # fmt: skip


@pytest.mark.slow
def test_a_killed_rank_and_a_signal_change_no_bit(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    whole, killed, stopped = (tmp_path / name for name in ("whole", "killed", "stopped"))
    quiet = {"env": environment(), "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command(model_folder, prepared_folder, whole), timeout=200, **quiet)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout

    run = subprocess.Popen(command(model_folder, prepared_folder, killed, "--restarts", "1"), **quiet)  # type: ignore[call-overload]
    wait_for_step(killed, 6)
    os.kill(ranks_of(killed)[1], signal.SIGKILL)
    out, _ = run.communicate(timeout=200)
    assert run.returncode == 0, out
    assert "going on from " in out and alive(str(killed)) == []
    assert weights(killed) == weights(whole)

    run = subprocess.Popen(command(model_folder, prepared_folder, stopped), **quiet)  # type: ignore[call-overload]
    wait_for_step(stopped, 4)
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=200)
    assert run.returncode == 143, out
    assert "stopped by SIGTERM after step " in out and alive(str(stopped)) == []
    assert found(stopped / "checkpoints")[0].step < STEPS
    done = subprocess.run(command(model_folder, prepared_folder, stopped), timeout=200, **quiet)  # type: ignore[call-overload]
    assert done.returncode == 0 and "going on from " in done.stdout, done.stdout
    assert weights(stopped) == weights(whole)
