"""Stops, failures and restarts under scripts/launch.sh, with a stand-in for `sinktrain fit` (stand_in.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import LAUNCH, SHORT, STAND_IN, alive, end_what_was_started, on_two_machines, start, until, written

STARTED = ("pid-0-0", "pid-1-0")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    end_what_was_started()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_is_saved_and_told(number: int, tmp_path: Path) -> None:
    """Ranks that need a second to save have it, nothing is started again, and the same command goes on from there."""
    command = ["--cpus", "2", "--restarts", "2", "--", str(tmp_path)]
    run = start(*command, "1000", "1")
    until(written(tmp_path, *STARTED))
    run.send_signal(number)
    _, said = run.communicate(timeout=SHORT)
    assert run.returncode == 128 + number, said
    assert f"stopped by {signal.Signals(number).name}" in said
    assert written(tmp_path, "saved-0", "saved-1")() and not list(tmp_path.glob("pid-*-1"))
    assert alive(str(tmp_path)) == []

    if number == signal.SIGUSR1:
        (tmp_path / "stop-0").unlink()
        (tmp_path / "saved-0").write_text("7")
        again = start(*command, "12")
        assert again.wait(timeout=SHORT) == 0, again.communicate()
        assert (tmp_path / "done-0").read_text() == "from 7"


def test_a_save_that_takes_too_long(tmp_path: Path) -> None:
    """--save-seconds is the bound; ranks that were killed have not saved, and the status does not say so."""
    run = start("--cpus", "1", "--save-seconds", "1", "--", str(tmp_path), "1000", "60")
    until(written(tmp_path, "pid-0-0"))
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=25)  # torchrun's own bound is 30
    assert run.returncode == 137 and "[-9]" in said, said
    assert alive(str(tmp_path)) == []


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    """--restarts 1: all ranks start again, from what was saved, and finish."""
    run = start("--cpus", "2", "--restarts", "1", "--", str(tmp_path), "40")
    until(written(tmp_path, *STARTED, "saved-0", "saved-1"))
    os.kill(int((tmp_path / "pid-1-0").read_text()), signal.SIGKILL)
    _, said = run.communicate(timeout=SHORT)
    assert run.returncode == 0, said
    assert written(tmp_path, "pid-0-1", "pid-1-1")() and not list(tmp_path.glob("pid-*-2"))
    assert int((tmp_path / "done-0").read_text().split()[1]) >= 10 and alive(str(tmp_path)) == []


def test_a_rank_that_fails_gives_its_status(tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    run = start("--cpus", "2", "--", str(tmp_path))
    _, said = run.communicate(timeout=SHORT)
    assert run.returncode == 3, said
    assert alive(str(tmp_path)) == []


def test_a_launcher_that_is_killed_leaves_no_rank(tmp_path: Path) -> None:
    run = start("--cpus", "2", "--", str(tmp_path), "100000")
    until(written(tmp_path, *STARTED))
    run.kill()
    run.communicate(timeout=SHORT)
    until(lambda: alive(str(tmp_path)) == [])


@pytest.mark.parametrize("how", ["--rdzv {0}:29519", "--master {0}:29520 --node-rank {1}"])
def test_a_stop_on_one_of_two_machines(how: str, tmp_path: Path) -> None:
    """Both launchers tell it, and neither spends a restart on it. The ranks share a folder, as real ones a network."""

    def command(address: str, number: int) -> str:
        launch = f"exec {LAUNCH} --nodes 2 {how.format(address, number)} --cpus 1 --restarts 1 -- {tmp_path} 1000"
        if number == 1:
            return f"bash -c '{launch}'"
        ready = " && ".join(f"[ -s {tmp_path}/{name} ]" for name in STARTED)
        return f"bash -c '(until {ready}; do sleep 0.1; done; kill -USR1 $$) & {launch}'"

    statuses, printed = on_two_machines(command, SINKTRAIN=STAND_IN)
    assert statuses == [138, 138], printed
    assert written(tmp_path, "saved-0", "saved-1")() and not list(tmp_path.glob("pid-*-1"))
    assert alive(str(tmp_path)) == []
