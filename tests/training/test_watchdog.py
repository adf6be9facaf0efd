"""A rank dies, is stopped, hangs or fails: the others end with a message that names it, and nothing is left behind."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from forking import Ranks


@pytest.fixture
def options(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_folder), "data": str(prepared_folder), "out": str(tmp_path / "run"), "steps": 100_000,
        "batch": 2, "strategy": "ddp", "every": 3, "pause": 0.05, "workers": 1,
        "watchdog": {"stuck_after": 3, "dead_after": 3},
    }  # fmt: skip


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_dies(starter: Ranks, options: dict[str, Any], rank: int) -> None:
    done = starter.run("resume_run", options, 2, signals=[[3.0, rank, signal.SIGKILL]], timeout=60)
    assert done.statuses[rank] == -signal.SIGKILL and done.statuses[1 - rank] == 70, done.out[-3000:]
    assert not done.left
    named = "rank 0" if rank == 0 else "rank 1 (process "
    assert f"rank {1 - rank} ends: {named}" in done.out and "has died" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_stopped(starter: Ranks, options: dict[str, Any], rank: int) -> None:
    """SIGSTOP, as a machine that is frozen; the launcher kills what is left of it."""
    signals = [[3.0, rank, signal.SIGSTOP], [20.0, rank, signal.SIGKILL]]
    done = starter.run("resume_run", options, 2, signals=signals, timeout=60)
    assert done.statuses[1 - rank] == 70, done.out[-3000:]
    # Here the store lies in rank 0, and stops with it; torchrun's lies in the launcher.
    named = "the store that the ranks met at" if rank == 0 else "rank 1 (process "
    assert f"rank {1 - rank} ends: {named}" in done.out and "has died or is stopped" in done.out


@pytest.mark.parametrize("place", ["forward", pytest.param("data", marks=pytest.mark.slow)])
def test_a_rank_hangs(starter: Ranks, options: dict[str, Any], place: str) -> None:
    done = starter.run("resume_run", {**options, "hang": [place, 4, 1]}, 2, timeout=60)
    assert done.statuses == [70, 70] and not done.left, done.out[-3000:]
    where = {"forward": "the forward pass of step 4", "data": "the data, callbacks or checkpoint after step 4"}[place]
    for rank in range(2):
        assert f"rank {rank} ends: rank 1 (process " in done.out
    assert f" in {where} hangs: no progress for " in done.out
    assert "in hang" in done.out  # where its thread was
    assert done.seconds < 25


def test_a_rank_fails(starter: Ranks, options: dict[str, Any]) -> None:
    done = starter.run("resume_run", {**options, "hang": ["error", 4, 1]}, 2, timeout=60)
    assert done.statuses[1] == 1 and done.statuses[0] == 70 and not done.left, done.out[-3000:]
    assert "rank 0 ends: rank 1 (process " in done.out and "has failed: ZeroDivisionError: on purpose" in done.out
    assert done.seconds < 25


@pytest.mark.slow
def test_a_slow_step_is_no_hang(starter: Ranks, options: dict[str, Any]) -> None:
    slow = {**options, "steps": 4, "pause": 2.0}
    done = starter.run("resume_run", slow, 2, timeout=60)
    assert done.statuses == [0, 0] and not done.left, done.out[-3000:]
