"""SIGTERM, SIGINT, SIGUSR1 to any rank: all save after the same step, and end with the status that tells which."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Faults
from forking import Ranks

from sinktrain.checkpoints.store import found
from sinktrain.training.notices import COUNT, SAVE, Notices

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}
STEPS, SIZE = 15, 4


@pytest.fixture(scope="module")
def base(model_folder: Path, prepared_folder: Path) -> dict[str, Any]:
    return {"model": str(model_folder), "data": str(prepared_folder), "steps": STEPS, "batch": SIZE, "pause": 0.25}


@pytest.fixture(scope="module")
def whole(starter: Ranks, base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nothing happens to, by number of ranks."""
    made = {}
    for ranks in (1, 2):
        made[ranks] = tmp_path_factory.mktemp("whole") / "run"
        now = {
            **base,
            "pause": 0.0,
            "out": str(made[ranks]),
            "batch": SIZE // ranks,
            "strategy": "ddp" if ranks > 1 else "auto",
        }
        assert set(starter.run("resume_run", now, ranks).statuses) == {0}
    return made


def stopped(starter: Ranks, options: dict[str, Any], ranks: int, signals: list[list[Any]], status: int) -> int:
    """Runs, sends the signals, and returns after which step it stopped."""
    done = starter.run("resume_run", options, ranks, signals=signals, timeout=60)
    assert done.statuses == [status] * ranks and not done.left, done.out[-3000:]
    assert "Traceback" not in done.out
    words = re.search(r"stopped by (\w+) after step (\d+); checkpoint: (\S+)", done.out)
    assert words is not None and 128 + signal.Signals[words[1]] == status
    newest = found(Path(options["out"]) / "checkpoints")[0]
    newest.check()
    assert str(newest.path) == words[3] and newest.step == int(words[2]) and 0 < newest.step < STEPS
    for rank in range(ranks):
        lines = (Path(options["out"]) / f"steps-{rank}.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == newest.step  # no step was made that is not in it
    return newest.step


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_one_process(
    starter: Ranks, base: dict[str, Any], whole: dict[int, Path], faults: Faults, tmp_path: Path, number: signal.Signals
) -> None:
    options = {**base, "out": str(tmp_path / "run"), "workers": 1}
    stopped(starter, options, 1, [[2.0, 0, number]], STATUS[number])
    done = starter.run("resume_run", {**options, "pause": 0.0})
    assert done.statuses == [0], done.out[-2000:]
    assert faults.count(f"{number.name}, 1 rank", tmp_path / "run", whole[1], 1, SIZE).clean


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)])
def test_a_signal_to_one_of_two_ranks(
    starter: Ranks, base: dict[str, Any], whole: dict[int, Path], faults: Faults, tmp_path: Path,
    number: signal.Signals, rank: int,
) -> None:  # fmt: skip
    options = {**base, "out": str(tmp_path / "run"), "strategy": "ddp", "batch": SIZE // 2}
    stopped(starter, options, 2, [[3.0, rank, number]], STATUS[number])
    done = starter.run("resume_run", {**options, "pause": 0.0}, 2)
    assert done.statuses == [0, 0], done.out[-2000:]
    assert faults.count(f"{number.name} to rank {rank} of 2", tmp_path / "run", whole[2], 2, SIZE).clean


def test_signals_again_and_again(starter: Ranks, base: dict[str, Any], tmp_path: Path) -> None:
    """To both ranks, and while they are stopping: as a launcher passes one on that each has got already."""
    options = {**base, "out": str(tmp_path / "run"), "strategy": "ddp", "batch": SIZE // 2}
    signals = [[3.0 + 0.04 * n, rank, signal.SIGTERM] for n in range(60) for rank in range(2)]
    stopped(starter, options, 2, signals, 143)


def test_a_second_control_c_does_not_wait(starter: Ranks, base: dict[str, Any], tmp_path: Path) -> None:
    options = {**base, "out": str(tmp_path / "run"), "pause": 30.0}
    signals = [[2.5, 0, signal.SIGINT], [3.0, 0, signal.SIGINT]]
    done = starter.run("resume_run", options, 1, signals=signals, timeout=25)
    assert done.statuses[0] not in (0, -9) and done.seconds < 20, done.out[-2000:]


def test_notices_go_with_the_sums() -> None:
    one, two = Notices(), Notices()
    device = torch.device("cpu")
    quiet = one.mine(device)
    assert quiet.shape == (COUNT,) and not quiet.any() and one.mine(device) is quiet  # nothing is made for nothing
    one.give("SIGTERM")
    two.give(SAVE)
    for sums in (one.mine(device) + two.mine(device), one.mine(device) + two.mine(device)):
        one.arrived(sums)
        two.arrived(sums)
    assert one.read() == two.read() == {"SIGTERM", SAVE}
    assert one.read() == set()
    one.arrived(one.mine(device))
    assert one.read() == set()  # what was given once is told once
