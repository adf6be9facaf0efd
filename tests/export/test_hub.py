"""Pushing to a hub: the real client against a server on this machine, with faults, and back by `from_pretrained`."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import GOOD, READ, USER, Fault, Hub
from test_export import trained_checkpoint

from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.export.hub import HubOptions, upload
from sinktrain.sinks import SinkConfig

NAME = f"{USER}/streaming"


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, prepared_folder: Path
) -> tuple[Path, Path]:  # fmt: skip
    place = tmp_path_factory.mktemp("exported")
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, place, SinkConfig())
    assert main(["export", str(checkpoint), str(place / "model"), "--shard_size", "40KB"]) == 0
    return checkpoint, place / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, to which this process is logged in."""
    from huggingface_hub import constants

    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            importlib.import_module("sinktrain.export.hub"), "_wait", lambda number, asked: waits(asked)
        )
        monkeypatch.setenv("HF_TOKEN", GOOD)
        waited.clear()
        yield server


waited: list[str | None] = []


def waits(asked: str | None) -> float:
    waited.append(asked)
    return 0.01


def push(folder: Path, *more: str) -> int:
    return main(["push", str(folder), NAME, *more])


def unchecked(folder: Path) -> int:
    """`push`, without the checks before it."""
    try:
        upload(folder, NAME, HubOptions(), "a message")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LOADS = """
import json, sys, torch
sys.modules["sinktrain"] = None
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer
name, out = sys.argv[1:3]
options = {"revision": sys.argv[3]} if len(sys.argv) > 3 else {}
tokenizer = AutoTokenizer.from_pretrained(name, **options)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
ids = tokenizer("the cat sat on a mat", return_tensors="pt")
streamed = model.generate(**ids, custom_generate=name, trust_remote_code=True, cache="1+11", max_new_tokens=40,
                          do_sample=False)
torch.save({"logits": model(**ids).logits.detach(), "ids": ids.input_ids, "streamed": streamed}, out)
"""


def test_pushed_and_loaded_back(
    exported: tuple[Path, Path], hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = exported
    assert push(folder, "--checkpoint", str(checkpoint)) == 0
    out = capsys.readouterr().out
    assert f"to {NAME}, branch main: {hub.url}/{NAME}/commit/" in out and "checks hold" in out
    repository = hub.repositories[NAME]
    assert repository.private and repository.files("main") == files_of(folder)
    assert repository.messages == ["Step 3, exported by sinktrain " + record(folder)["sinktrain"]]
    assert GOOD not in out
    found = loaded(hub, tmp_path, NAME)
    local = loaded(hub, tmp_path, str(folder))
    assert torch.equal(found["logits"], local["logits"]) and torch.equal(found["streamed"], local["streamed"])
    assert found["ids"][0, 0] == record(folder)["sink"]["ids"][0]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sinktrain.json").read_text())
    return found


def loaded(hub: Hub, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What a process of its own gets from there."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": READ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip
    command = [sys.executable, "-c", LOADS, arguments[0], str(tmp_path / "found.pt"), *arguments[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(tmp_path / "found.pt")
    return found


def test_a_second_export_replaces_the_first(
    exported: tuple[Path, Path], hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another branch, with another message, in one file where there were several; and what is there is not sent."""
    checkpoint, folder = exported
    assert unchecked(folder) == 0
    sent = hub.count("PUT /lfs")
    assert sent == len(list(folder.glob("*.safetensors"))) + 1  # the tokenizer
    assert unchecked(folder) == 0 and hub.count("PUT /lfs") == sent and len(hub.repositories[NAME].messages) == 1
    whole = ["export", str(checkpoint), str(tmp_path / "one"), "--push-to-hub", NAME]
    assert main([*whole, "--hub.revision", "smaller", "--hub.message", "In one file"]) == 0
    repository = hub.repositories[NAME]
    assert repository.files("smaller") == files_of(tmp_path / "one") and repository.messages[-1] == "In one file"
    assert "model.safetensors" in repository.files("smaller") and repository.files("main") == files_of(folder)
    assert hub.count("PUT /lfs") == sent + 1
    assert loaded(hub, tmp_path, NAME, "smaller")["ids"][0, 0] == record(folder)["sink"]["ids"][0]


def test_public(exported: tuple[Path, Path], hub: Hub) -> None:
    upload(exported[1], NAME, HubOptions(public=True), "a message")
    assert not hub.repositories[NAME].private


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /api/repos/create", 429, 2, {"Retry-After": "7"}), Fault("POST /api/repos/create", 500),
        Fault("POST .*/preupload/", "cut"), Fault("POST .*/lfs/objects/batch", 503), Fault("PUT /lfs/", 500),
        Fault("PUT /lfs/", "cut"), Fault("POST .*/commit/", 409), Fault("POST .*/commit/", "cut"),
        Fault("POST .*/commit/", 429, 1, {"Retry-After": "3"}), Fault("GET .*/tree/", 502, 3),
    ],
    ids=lambda fault: f"{fault.where} {fault.what}",
)  # fmt: skip
def test_what_passes_is_waited_for(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str], fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    fault = Fault(fault.where, fault.what, fault.times, fault.headers)
    hub.faults.append(fault)
    assert unchecked(exported[1]) == 0, capsys.readouterr().err
    assert fault.times == 0 and hub.repositories[NAME].files("main") == files_of(exported[1])
    assert len(hub.repositories[NAME].messages) == 1
    if "Retry-After" in fault.headers and waited:
        assert set(waited) == {fault.headers["Retry-After"]}


def test_goes_on_after_it_was_given_up(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append(Fault("POST .*/commit/", 500, 100))
    assert unchecked(exported[1]) == 2
    err = capsys.readouterr().err
    assert "status 500" in err and f"go on with `sinktrain push {exported[1]} {NAME}`" in err and err.count("\n") == 1
    assert hub.repositories[NAME].files("main") == {}  # nothing that looks whole
    sent = hub.count("PUT /lfs")
    hub.faults.clear()
    assert unchecked(exported[1]) == 0 and hub.count("PUT /lfs") == sent
    assert hub.repositories[NAME].files("main") == files_of(exported[1])


def test_what_arrives_broken_is_seen(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server.git_name", lambda content: "0" * 40)
    assert unchecked(exported[1]) == 2
    assert "is not what was sent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "there is no token"), ("hf_" + "x" * 34, "does not know this token"), (READ, "may not write there")],
)
def test_tokens(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, token: str | None, said: str,
) -> None:  # fmt: skip
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "absent"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    checkpoint, _ = exported
    out = tmp_path / "model"
    assert main(["export", str(checkpoint), str(out), "--push_to_hub", NAME]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "--push_to_hub" in err and (token or "?") not in err
    assert out.exists() == (token is not None)  # without a token nothing was begun
    assert NAME not in hub.repositories


@pytest.mark.parametrize("name", ["a/b/c", "some one/model", "-x/y", "a..b", "x.git", ""])
def test_names(exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["push", str(exported[1]), f"--repository={name}"]) == 2
    err = capsys.readouterr().err
    assert "is no name of a repository" in err and err.count("\n") == 1
    assert hub.requests == []


def test_what_fails_its_checks_is_not_pushed(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = shutil.copytree(exported[1], tmp_path / "broken")
    path = broken / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    assert push(broken) == 2
    err = capsys.readouterr().err
    assert "not pushed" in err and "plain text begins with the sink" in err and err.count("\n") == 1
    assert hub.requests == []
