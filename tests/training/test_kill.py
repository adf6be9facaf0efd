"""kill -9 at any moment, a save's among them: what comes out in the end is, bit by bit, what comes out without it."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import Faults
from forking import Ranks

STEPS, SIZE = 10, 8


def settings(model: Path, data: Path, ranks: int) -> dict[str, Any]:
    """Temporary checkpoints every two steps would need minutes; so permanent ones."""
    return {"model": str(model), "data": str(data), "steps": STEPS, "batch": SIZE // ranks, "every": 2, "pause": 0.02,
            "strategy": "ddp" if ranks > 1 else "auto"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(
    starter: Ranks, model_folder: Path, prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[Path, float]]:
    """Runs that nothing happens to, by number of ranks: their folders, and how long they took."""
    made = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp("whole") / "run"
        done = starter.run("resume_run", {**settings(model_folder, prepared_folder, ranks), "out": str(folder)}, ranks)
        assert set(done.statuses) == {0}, done.out[-3000:]
        made[ranks] = (folder, done.seconds)
    return made


def finish(starter: Ranks, options: dict[str, Any], ranks: int) -> str:
    """Starts a run again and lets it come to its end."""
    done = starter.run("resume_run", options, ranks)
    assert set(done.statuses) == {0} and not done.left, done.out[-3000:]
    return done.out


def kill_in_save(starter: Ranks, options: dict[str, Any], ranks: int, rank: int, operation: int, folder: Path) -> bool:
    """Kills a rank before a file operation, then finishes; False where there are not so many operations."""
    shutil.rmtree(folder, ignore_errors=True)
    now = {**options, "out": str(folder)}
    killed = starter.run(
        "resume_run", {**now, "kill_operation": operation, "kill_rank": rank}, ranks, together=True, timeout=60
    )
    if killed.statuses[rank] != -signal.SIGKILL:
        assert set(killed.statuses) == {0}, killed.out[-3000:]
        return False
    finish(starter, now, ranks)
    assert not list((folder / "checkpoints").glob(".*"))  # what was half done is gone
    return True


@pytest.mark.parametrize("operation", [4, 30, 37, 43])
def test_killed_between_two_file_operations(
    starter: Ranks,
    whole: Any,
    faults: Faults,
    model_folder: Path,
    prepared_folder: Path,
    tmp_path: Path,
    operation: int,
) -> None:
    options = settings(model_folder, prepared_folder, 1)
    assert kill_in_save(starter, options, 1, 0, operation, tmp_path / "run")
    assert faults.count("kill -9 before a file operation of a save", tmp_path / "run", whole[1][0], 1, SIZE).clean


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_killed_between_any_two_file_operations_of_a_save(
    starter: Ranks, whole: Any, faults: Faults, model_folder: Path, prepared_folder: Path, tmp_path: Path, ranks: int,
    rank: int,
) -> None:  # fmt: skip
    """Of the first save and all of the second, whose names are there already to go back to."""
    options = settings(model_folder, prepared_folder, ranks)
    name = f"kill -9 before each file operation of two saves ({ranks} ranks, on rank {rank})"
    operation = 0
    while operation < (75 if rank == 0 else 25):
        operation += 1 if ranks == 1 else 3
        assert kill_in_save(starter, options, ranks, rank, operation, tmp_path / "run"), operation
        assert faults.count(name, tmp_path / "run", whole[ranks][0], ranks, SIZE).clean, operation


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "times"), [(1, 30), (2, 15)])
def test_killed_at_random_moments(
    starter: Ranks, whole: Any, faults: Faults, model_folder: Path, prepared_folder: Path, tmp_path: Path, ranks: int,
    times: int,
) -> None:  # fmt: skip
    options, (expected, seconds) = settings(model_folder, prepared_folder, ranks), whole[ranks]
    draw, killed, trial = random.Random(ranks), 0, 0
    while killed < times:
        trial += 1
        assert trial < 5 * times
        now = {**options, "out": str(tmp_path / f"run-{trial}")}
        moment = [draw.uniform(0.1, seconds), draw.randrange(ranks), signal.SIGKILL]
        done = starter.run("resume_run", now, ranks, signals=[moment], together=True, timeout=60)
        if -signal.SIGKILL not in done.statuses:
            continue  # it was done before
        killed += 1
        finish(starter, now, ranks)
        name = f"kill -9 at a random moment ({ranks} ranks)"
        assert faults.count(name, tmp_path / f"run-{trial}", expected, ranks, SIZE).clean, moment


def test_the_count_has_teeth(whole: Any, tmp_path: Path) -> None:
    """A step that is missing, one that used a sample twice, another loss, another end."""
    import json

    folder = whole[1][0]
    for number, change in enumerate(("missing", "sample", "loss", "final")):
        run = tmp_path / change
        shutil.copytree(folder, run, ignore=shutil.ignore_patterns("checkpoints"))
        lines = [json.loads(line) for line in (run / "steps-0.jsonl").read_text().splitlines()]
        if change == "missing":
            del lines[3]
        elif change == "sample":
            lines[3]["samples"][0] = lines[2]["samples"][0]
        elif change == "loss":
            lines[3]["loss"] = lines[2]["loss"]
        else:
            (run / "final-0.json").write_text("{}")
        (run / "steps-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        line = Faults().count(change, run, folder, 1, SIZE)
        assert not line.clean, change
        assert [line.lost > 0, line.repeated > 0] == [number < 2, number == 1]
