"""A folder is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sinktrain.base.errors import UserError
from sinktrain.base.folders import kept_folder, new_folder

WRITE_FOREVER = """
import sys, time
from pathlib import Path
from typing import Any
from sinktrain.base.folders import kept_folder, new_folder

with new_folder(Path(sys.argv[1]), "--out", overwrite=True) as draft:
    (draft / "half").write_text("new")
    print("writing", flush=True)
    time.sleep(60)
"""


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def test_appears_with_everything_in_it_and_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target, "--out") as draft:
        (draft / "a").write_text("1")
        assert not target.exists()
    assert contents(target) == {"a": "1"}
    assert names(target.parent) == ["out"]


def test_is_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with new_folder(tmp_path / "out", "--out"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out", "--out") as draft:
        (draft / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_overwriting_keeps_the_old_until_the_new_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target, "--out") as draft:
        (draft / "old").write_text("old")
    with pytest.raises(ValueError), new_folder(target, "--out", overwrite=True) as draft:
        (draft / "new").write_text("new")
        assert contents(target) == {"old": "old"}
        raise ValueError
    assert contents(target) == {"old": "old"}
    with new_folder(target, "--out", overwrite=True) as draft:
        (draft / "new").write_text("new")
    assert contents(target) == {"new": "new"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("old", [None, {"old": "old"}])
def test_kill_while_writing_leaves_the_target_as_it_was(tmp_path: Path, old: dict[str, str] | None) -> None:
    target = tmp_path / "out"
    if old is not None:
        target.mkdir()
        (target / "old").write_text("old")
    command = [sys.executable, "-c", WRITE_FOREVER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert (contents(target) if target.exists() else None) == old
    with new_folder(target, "--out", overwrite=True) as draft:  # and what the dead one left is in nobody's way
        (draft / "new").write_text("new")
    assert contents(target) == {"new": "new"}


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with (
        pytest.raises(UserError, match=r"^--out .*out: exists already; .*--overwrite"),
        new_folder(tmp_path / "out", "--out"),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path / "out") == {"old": "old"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", "--out") as draft:
        (draft / "a").write_text("1")
    assert contents(tmp_path / "out") == {"a": "1"}


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_way_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("kept")
    sentence = r"^--out \S+: .*(name a|choose another) folder\.$"
    with pytest.raises(UserError, match=sentence), new_folder(tmp_path / path, "--out", overwrite=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("make", [new_folder, kept_folder])
@pytest.mark.parametrize("place", ["model", "model/..", ".", ".."])
def test_what_is_read_is_not_replaced(make: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the folder that one is in, asked or not."""
    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "here" / "model" / "weights").write_text("weeks of work")
    monkeypatch.chdir(tmp_path / "here")
    reads = [None, "package:other", "model"]
    with (
        pytest.raises(UserError, match=r"^--out \S+: (model lies there|is the folder that you are in)"),
        make(Path(place), "--out", overwrite=True, reads=reads),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "here" / "model" / "weights").read_text() == "weeks of work"
    with make(Path("model/eval"), "--out", overwrite=True, reads=reads):
        pass
    assert sorted(names(tmp_path / "here" / "model")) == ["eval", "weights"]
