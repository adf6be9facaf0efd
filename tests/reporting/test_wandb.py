"""Weights & Biases gets what the page has; without it nothing is another."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_results import write_results
from made_up_runs import verdict_of_schema_2, write_answers

from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.reporting.report import report
from sinktrain.reporting.wandb_log import WandbOptions

SECRET = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ" * 2


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """wandb reads its settings once a process; the next test has its own."""
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_answers(tmp_path / "run" / "answers")
    write_results(tmp_path / "run" / "grid", 600, sink=True, layers=2, heads=2, name="token")
    (tmp_path / "run" / "verdict.json").write_text(json.dumps(verdict_of_schema_2()))
    return tmp_path / "run"


def records(path: Path) -> Iterator[Any]:
    """What an offline run wrote: protocol buffers in LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_offline_has_table_pictures_page_verdict_and_artifact(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_SILENT", "true"), ("WANDB_DATA_DIR", str(tmp_path / "data")), ("WANDB_MODE", "online")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["sinktrain", "report", "--token", SECRET])
    out = tmp_path / "out" / "page.html"
    options = WandbOptions("sinktrain", mode="offline", name="a name", group="a group", tags="one,two")
    report([run], out=out, wandb=options)
    wandb.teardown()  # its process writes the last block of the log when it ends
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    found = list(records(log))
    (started,) = (record.run for record in found if record.HasField("run"))
    assert (started.project, started.display_name, started.run_group) == ("sinktrain", "a name", "a group")
    assert list(started.tags) == ["one", "two"] and started.job_type == "report"
    summary = {
        "/".join([item.key, *item.nested_key]).strip("/"): json.loads(item.value_json)
        for record in found if record.HasField("summary") for item in record.summary.update
    }  # fmt: skip
    assert summary["verdict/statement"] == "proven"
    assert summary["verdict/1+255 minus 4+252/difference"] == pytest.approx(0.0011)
    (table,) = (folder / "files" / "media" / "table").glob("caches*.json")
    rows = json.loads(table.read_text())
    assert len(rows["data"]) == 5 and rows["columns"][:3] == ["model", "text", "cache"]
    assert rows["columns"][-2:] == ["seconds", "predicted_tokens_per_second"]
    tokens = rows["columns"].index("tokens")
    assert all(row[-1] == pytest.approx(row[tokens] / row[-2]) for row in rows["data"])
    pictures = {path.name.split("_")[0] for path in (folder / "files" / "media" / "images" / "pictures").iterdir()}
    assert pictures >= {"recall", "stream-tuned", "verdict"}
    (page,) = (folder / "files" / "media" / "html").iterdir()
    assert page.read_text() == out.read_text()
    entries = [e for record in found for e in record.request.log_artifact.artifact.manifest.contents] + [
        e for record in found for e in record.artifact.manifest.contents
    ]
    paths = {entry.path: Path(entry.local_path) for entry in entries}
    assert {"page.html", "pictures/recall-dark.svg", "pictures/recall.csv", "caches.table.json"} <= set(paths)
    assert paths["page.html"].read_bytes() == out.read_bytes()  # kept until it is sent
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def test_the_page_is_the_same_without(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    with_it = report([run / "answers"], out=tmp_path / "a" / "p.html", wandb=WandbOptions("p", mode="offline"))
    code = f"""
import sys
from sinktrain.cli import main
status = main(["report", {str(run / "answers")!r}, "--out", {str(tmp_path / "b" / "p.html")!r}])
assert "wandb" not in sys.modules and status == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert with_it.read_bytes() == (tmp_path / "b" / "p.html").read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["p.html"]


def test_a_missing_package_is_one_sentence(run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    out = tmp_path / "a.html"
    assert main(["report", str(run / "answers"), "--out", str(out), "--wandb.project", "p"]) == 2
    assert "pip install 'sinktrain[wandb]'" in capsys.readouterr().err and not out.exists()


def test_options_without_a_project_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--wandb\.group"):
        report([run / "answers"], out=tmp_path / "a.html", wandb=WandbOptions(group="g"))


def test_a_refusal_is_one_sentence_and_the_page_stays(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-m", "sinktrain.cli", "report", str(run / "answers"), "--out", str(tmp_path / "a.html"),
               "--wandb.project", "p", "--wandb.mode", "online"]  # fmt: skip
    nobody = kept | {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none"), "WANDB_SILENT": "true"}
    done = subprocess.run(command, env=nobody, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "pass --wandb.mode offline" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "a.html").exists()
