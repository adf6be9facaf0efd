"""Full or read-only disks, checkpoints and data that are not what they were: a sentence; the last good one stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from faults import Faults
from forking import Ranks

from sinktrain.base.errors import UserError
from sinktrain.checkpoints import disk
from sinktrain.checkpoints.store import Draft, Found, found
from sinktrain.training import saving
from sinktrain.training.snapshot import Snapshot
from sinktrain.training.writing import BackgroundWriter

STEPS, SIZE = 8, 4


@pytest.fixture
def options(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": str(model_folder), "data": str(prepared_folder), "steps": STEPS, "batch": SIZE, "every": 2,
            "out": str(tmp_path / "run")}  # fmt: skip


@pytest.fixture(scope="module")
def whole(starter: Ranks, model_folder: Path, prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings = {"model": str(model_folder), "data": str(prepared_folder), "steps": STEPS, "batch": SIZE, "every": 2}
    done = starter.run("resume_run", {**settings, "out": str(folder)})
    assert done.statuses == [0], done.out[-3000:]
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MiB, where this machine lets one be mounted: three checkpoints, and not a fourth."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def steps(folder: Path) -> list[int]:
    return [each.step for each in found(folder)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk(
    starter: Ranks, options: dict[str, Any], small_disk: Path, tmp_path: Path, faults: Faults, whole: Path, ranks: int
) -> None:
    folder = small_disk / "checkpoints"
    now = {**options, "checkpoints": {"folder": str(folder)}, "every": 1, "batch": SIZE // ranks,
           "strategy": "ddp" if ranks > 1 else "auto"}  # fmt: skip
    done = starter.run("resume_run", now, ranks)
    assert done.statuses == [1] * ranks and not done.left, done.out[-3000:]
    assert f"checkpoints.folder {folder}: rank " in done.out and "could not write (No space left on device)" in done.out
    kept = steps(folder)
    assert kept and kept[0] < STEPS and f"The checkpoint {folder / f'step-{kept[0]:09d}'} is as it was." in done.out
    found(folder)[0].check()
    assert not list(folder.glob(".*"))  # the draft does not take the little room there is
    (small_disk / "filler").unlink(missing_ok=True)
    shutil.move(folder, tmp_path / "elsewhere")  # more room
    again = starter.run("resume_run", {**now, "checkpoints": {"folder": str(tmp_path / "elsewhere")}}, ranks)
    assert again.statuses == [0] * ranks, again.out[-3000:]
    if ranks == 1:
        assert faults.count("disk full during a save", tmp_path / "run", whole, 1, SIZE).clean


def test_a_read_only_folder(starter: Ranks, options: dict[str, Any], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = starter.run("resume_run", {**options, "checkpoints": {"folder": str(small_disk / "checkpoints")}})
    assert done.statuses == [1] and "Read-only file system" in done.out and "There is no earlier" in done.out


def damage(change: Callable[[bytes], bytes], name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "cut short": (damage(lambda content: content[:-1], "rank-00000.safetensors"), "bytes instead of"),
    "a bit flipped": (damage(flip, "rank-00000.safetensors"), "another checksum"),
    "a bit of the index flipped": (damage(flip, "rank-00000.json"), "another checksum"),
    "a bit of the state flipped": (damage(flip, "state.json"), "another checksum"),
    "a shard deleted": (lambda folder: (folder / "rank-00000.safetensors").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no readable manifest.json"),
    "manifest cut short": (damage(lambda content: content[:50], "manifest.json"), "manifest.json is damaged"),
    "manifest of a later version": (damage(lambda text: text.replace(b'"schema": 1', b'"schema": 9'), "manifest.json"),
                                    "has version 9"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "has no readable manifest.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(
    starter: Ranks, options: dict[str, Any], whole: Path, tmp_path: Path, faults: Faults, name: str
) -> None:
    """The newest is damaged: the run goes on from the one before it, says why, and comes out the same."""
    change, words = DAMAGE[name]
    run = tmp_path / "run"
    stopped = starter.run("resume_run", {**options, "stop": 6})
    assert stopped.statuses == [0] and steps(run / "checkpoints") == [6, 4, 2]
    change(run / "checkpoints" / "step-000000006")
    done = starter.run("resume_run", options)
    assert done.statuses == [0], done.out[-3000:]
    passed = next(line for line in done.out.splitlines() if line.startswith("passed over "))
    assert "step-000000006: " in passed and words in passed
    assert "going on from " in done.out and "step-000000004, step 4" in done.out
    assert steps(run / "checkpoints") == [8, 6, 4, 2]
    for each in found(run / "checkpoints"):
        each.check()  # the damaged one was made again
    assert faults.count("newest checkpoint damaged", run, whole, 1, SIZE).clean


def test_all_damaged(starter: Ranks, options: dict[str, Any], tmp_path: Path) -> None:
    starter.run("resume_run", {**options, "stop": 4})
    for each in found(tmp_path / "run" / "checkpoints"):
        (each.path / "model.json").unlink()
    done = starter.run("resume_run", options)
    assert (
        done.statuses == [1] and "no checkpoint in it is whole" in done.out and "its model.json is missing" in done.out
    )
    assert steps(tmp_path / "run" / "checkpoints") == [4, 2]  # nothing is thrown away


def test_two_ranks_check_a_share_each(starter: Ranks, options: dict[str, Any], tmp_path: Path) -> None:
    """Damage in any file is found, whichever rank reads it, and both ranks go on from the same checkpoint."""
    now = {**options, "strategy": "ddp", "batch": 2}
    assert starter.run("resume_run", {**now, "stop": 4}, 2).statuses == [0, 0]
    store = tmp_path / "run" / "checkpoints"
    for name in sorted(path.name for path in (store / "step-000000004").iterdir() if path.name != "manifest.json"):
        newest = store / "step-000000004"
        kept = (newest / name).read_bytes()
        (newest / name).write_bytes(flip(kept))
        problems = []
        for share in range(2):
            try:
                Found(newest, 4).check(share, 2)
            except ValueError as error:
                problems.append(str(error))
        assert len(problems) == 1 and name in problems[0]
        (newest / name).write_bytes(kept)
    (store / "step-000000004" / "rank-00001.safetensors").write_bytes(b"")
    done = starter.run("resume_run", now, 2)
    assert done.statuses == [0, 0] and "step-000000002, step 2" in done.out


@pytest.mark.parametrize("keep", [2, 3])
def test_temporary_ones_go_and_permanent_ones_stay(
    starter: Ranks, options: dict[str, Any], tmp_path: Path, keep: int
) -> None:
    """The word that it is time goes with the sums of the next step, after which is saved; that may be for good."""
    now = {**options, "every": 4, "steps": 12, "due": [0, 2, 3, 5, 9], "checkpoints": {"keep": keep}}
    assert starter.run("resume_run", now).statuses == [0]
    store = tmp_path / "run" / "checkpoints"
    kinds = {each.step: each.manifest()["permanent"] for each in found(store)}
    assert [step for step, permanent in kinds.items() if permanent] == [12, 8, 4]
    temporary = [step for step, permanent in kinds.items() if not permanent]
    assert temporary == [10, 6, 3, 1][:keep]


@pytest.mark.parametrize(("change", "words"), [
    ("truncated", "train.bin has"), ("missing", "train.bin is missing"), ("other tokens", "has changed since"),
    ("prepared anew", "is another text than")])  # fmt: skip
def test_data_that_changed_since_the_save(
    starter: Ranks, options: dict[str, Any], prepared_folder: Path, tmp_path: Path, change: str, words: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared_folder, data)
    now = {**options, "data": str(data), "check_files": change == "other tokens"}
    assert starter.run("resume_run", {**now, "stop": 4}).statuses == [0]
    train = data / "train.bin"
    if change == "truncated":
        train.write_bytes(train.read_bytes()[:-2])
    elif change == "missing":
        train.unlink()
    elif change == "other tokens":
        train.write_bytes(flip(train.read_bytes()))
    else:
        manifest = json.loads((data / "manifest.json").read_text())
        manifest["files"]["train.bin"]["sha256"] = "0" * 64
        (data / "manifest.json").write_text(json.dumps(manifest))
    done = starter.run("resume_run", now)
    assert done.statuses == [1] and words in done.out, done.out[-2000:]
    assert steps(tmp_path / "run" / "checkpoints") == [4, 2]


def test_export_takes_the_newest_whole_one(starter: Ranks, options: dict[str, Any], tmp_path: Path) -> None:
    starter.run("resume_run", {**options, "stop": 4})
    store = tmp_path / "run" / "checkpoints"
    (store / "step-000000004" / "rank-00000.safetensors").write_bytes(b"")
    line = ["export", "--checkpoint", str(store), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "sinktrain", *line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "exported step 2 " in done.stdout, done.stderr


def test_a_second_run_in_the_same_folder_takes_over(starter: Ranks, options: dict[str, Any], tmp_path: Path) -> None:
    """As when a scheduler starts a job again whose first start still runs: the older one stops at its next save."""
    run = tmp_path / "run"
    late = {**options, "every": 2, "steps": 40, "pause": 0.1, "owner": "another"}
    done = starter.run("resume_run", late)
    assert done.statuses == [1] and "another run has begun to write there" in done.out, done.out[-2000:]
    assert steps(run / "checkpoints") == [2]


def test_a_branch_needs_a_folder_of_its_own(starter: Ranks, options: dict[str, Any], tmp_path: Path) -> None:
    assert starter.run("resume_run", options).statuses == [0]
    store = tmp_path / "run" / "checkpoints"
    middle = str(store / "step-000000004")
    done = starter.run("resume_run", {**options, "checkpoints": {"resume": middle}})
    assert done.statuses == [1] and "holds step 8, and checkpoints.resume" in done.out
    branch = {"resume": middle, "folder": str(tmp_path / "branch")}
    done = starter.run("resume_run", {**options, "checkpoints": branch})
    assert done.statuses == [0] and steps(tmp_path / "branch") == [8, 6, 4]  # where it began, too
    again = starter.run("resume_run", {**options, "checkpoints": branch, "steps": 10})  # as a scheduler would
    assert again.statuses == [0] and f"going on from {tmp_path / 'branch' / 'step-000000008'}, step 8" in again.out


def test_two_damaged_ones_do_not_count(starter: Ranks, options: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """They are put aside, so that what is saved after them is neither thrown away as older, nor taken for older."""
    store, now = tmp_path / "run" / "checkpoints", {**options, "every": 100, "checkpoints": {"keep": 2}}
    assert starter.run("resume_run", {**now, "due": [0, 2, 4], "stop": 6}).statuses == [0]
    assert steps(store) == [6, 5, 3]
    for step in (6, 5):
        index = store / f"step-{step:09d}" / "rank-00000.json"
        index.write_bytes(flip(index.read_bytes()))
    done = starter.run("resume_run", {**now, "due": [3], "stop": 5})
    assert done.statuses == [0] and "step-000000003, step 3" in done.out, done.out[-2000:]
    assert steps(store) == [5, 4, 3] and len(list(store.glob("passed-over-*"))) == 2
    done = starter.run("resume_run", now)
    assert done.statuses == [0] and "step-000000005, step 5" in done.out
    ends = [json.loads((folder / "final-0.json").read_text()) for folder in (tmp_path / "run", whole)]
    assert ends[0]["fingerprint"] == ends[1]["fingerprint"]


def test_a_save_that_is_due_is_made_once_where_words_arrive_late(
    starter: Ranks, options: dict[str, Any], tmp_path: Path
) -> None:
    """On a GPU the host reads the sums of a step one step later."""
    now = {**options, "every": 100, "late": True, "due": [1, 2, 3, 4], "stop": 7}
    assert starter.run("resume_run", now).statuses == [0]
    assert steps(tmp_path / "run" / "checkpoints") == [7, 5, 3]  # with a word given again, step 4 too


def test_an_error_without_words_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any) -> None:
        raise MemoryError

    writer = BackgroundWriter(wait=1.0, keep=2)
    writer.begin(tmp_path)
    monkeypatch.setattr(disk, "write_file", no_memory)
    writer.start(Draft(tmp_path, 1, "a"), Snapshot(1, [], {}, {}), {})
    assert writer.join() == "MemoryError" and writer.join() == ""


@pytest.mark.parametrize("what", ["average", "precision"])
def test_what_a_checkpoint_would_not_keep_is_refused(tmp_path: Path, what: str) -> None:
    class Average(L.Callback):
        def on_save_checkpoint(self, *args: Any) -> None:
            """Puts its state elsewhere."""

    trainer = SimpleNamespace(callbacks=[Average()] if what == "average" else [], precision="16-mixed")
    words = {"average": "trainer.callbacks Average", "precision": r"trainer\.precision 16-mixed"}[what]
    with pytest.raises(UserError, match=words):
        saving._check(trainer)
