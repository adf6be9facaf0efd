"""Pushing to a hub: the real client against a server on this machine, with faults, and back by `from_pretrained`."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import GOOD, READ, USER, Fault, Hub
from test_export import checkpoint_of, trained_checkpoint

from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.export.hub import HubOptions, _wait, upload
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule, TuningConfig

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


def sent(folder: Path, revision: str = "") -> dict[str, bytes]:
    """The files of a folder as they are to be in the repository, whose name its card has instead."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    card = files["README.md"].decode()
    assert card.count(f'"{folder.name}"') == 3 and f"\n# {folder.name}\n" in card
    there = f'"{NAME}"' + (f', revision="{revision}"' if revision else "")
    card = card.replace(f'"{folder.name}"', there).replace(f"\n# {folder.name}\n", "\n# streaming\n")
    return {**files, "README.md": card.encode()}


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
    assert repository.private and repository.files("main") == sent(folder)
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
    elsewhere(hub, tmp_path, LOADS, arguments[0], str(tmp_path / "found.pt"), *arguments[1:])
    found: dict[str, Any] = torch.load(tmp_path / "found.pt")
    return found


def elsewhere(hub: Hub, tmp_path: Path, program: str, *arguments: str) -> str:
    """What a program prints that may read the hub."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": READ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_card_is_run_from_the_hub(
    model_folder: Path, prepared_folder: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a branch, with adapters, in a repository that was not named when the folder was made; main has no files."""
    module = SinkModule(
        name=str(model_folder), tuning=TuningConfig(mode="lora", rank=2), optimizer=OptimizerConfig(warmup_steps=1)
    )
    checkpoint = checkpoint_of(module, prepared_folder, tmp_path)
    folder = tmp_path / "out" / "model"
    assert main(["export", str(checkpoint), str(folder), "--adapters", "keep"]) == 0
    upload(folder, "streaming", HubOptions(revision="dev"), "a message")
    files = hub.repositories[NAME].files("dev")
    config = json.loads(files["adapter/adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, "dev")
    blocks = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    adapters, lines = blocks
    assert len(lines.strip().splitlines()) == 5
    program = f'import sys\nsys.modules["sinktrain"] = None\n{lines}{adapters}'.replace("=2000", "=20")
    out = elsewhere(hub, tmp_path, program + "print(sum(name.count('lora_A') for name in model.state_dict()))")
    assert "<sink>Once upon a time" in out and int(out.split()[-1]) > 0


@pytest.mark.slow
def test_a_second_export_replaces_the_first(
    exported: tuple[Path, Path], hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another branch, with another message, in one file where there were several; and what is there is not sent."""
    checkpoint, folder = exported
    assert unchecked(folder) == 0
    count = hub.count("PUT /lfs")
    assert count == len(list(folder.glob("*.safetensors"))) + 1  # the tokenizer
    assert unchecked(folder) == 0 and hub.count("PUT /lfs") == count and len(hub.repositories[NAME].messages) == 1
    whole = ["export", str(checkpoint), str(tmp_path / "one"), "--push-to-hub", NAME]
    assert main([*whole, "--hub.revision", "smaller", "--hub.message", "In one file"]) == 0
    repository = hub.repositories[NAME]
    assert repository.files("smaller") == sent(tmp_path / "one", "smaller") and repository.messages[-1] == "In one file"
    assert "model.safetensors" in repository.files("smaller") and repository.files("main") == sent(folder)
    assert hub.count("PUT /lfs") == count + 1
    assert loaded(hub, tmp_path, NAME, "smaller")["ids"][0, 0] == record(folder)["sink"]["ids"][0]


def test_public(exported: tuple[Path, Path], hub: Hub) -> None:
    upload(exported[1], NAME, HubOptions(public=True), "a message")
    assert not hub.repositories[NAME].private
    with pytest.raises(UserError, match="is public; pass"):  # it would not become private
        upload(exported[1], NAME, HubOptions(message="another"), "a message")
    assert hub.repositories[NAME].messages == ["a message"]


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
    assert fault.times == 0 and hub.repositories[NAME].files("main") == sent(exported[1])
    assert len(hub.repositories[NAME].messages) == 1
    if "Retry-After" in fault.headers:
        assert waited == [fault.headers["Retry-After"]] * len(waited) and waited


def test_goes_on_after_it_was_given_up(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append(Fault("POST .*/commit/", 500, 100))
    assert unchecked(exported[1]) == 2
    err = capsys.readouterr().err
    assert "status 500" in err and f"go on with `sinktrain push {exported[1]} {NAME}`" in err and err.count("\n") == 1
    assert hub.repositories[NAME].files("main") == {}  # nothing that looks whole
    before = hub.count("PUT /lfs")
    hub.faults.clear()
    assert unchecked(exported[1]) == 0 and hub.count("PUT /lfs") == before
    assert hub.repositories[NAME].files("main") == sent(exported[1])


def test_the_command_that_goes_on_is_whole(exported: tuple[Path, Path], hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    shutil.copytree(exported[1], folder)
    hub.faults.append(Fault("POST /api/repos/create", 400))
    options = HubOptions(public=True, revision="dev", message="It's done")
    with pytest.raises(UserError) as refused:
        upload(folder, NAME, options, "a message", checkpoint=exported[0])
    said = str(refused.value).partition("`")[2].rpartition("`")[0]
    assert shlex.split(said) == [
        "sinktrain", "push", str(folder), NAME, "--checkpoint", str(exported[0]), "--hub.public", "true",
        "--hub.revision", "dev", "--hub.message", "It's done",
    ]  # fmt: skip


@pytest.mark.parametrize("passes", [True, False])
def test_what_xet_says_is_waited_for(
    exported: tuple[Path, Path], hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    passes: bool,
) -> None:  # fmt: skip
    """The client's other protocol, by which large files go where its package is installed; here its errors alone."""
    from huggingface_hub import constants

    def fails(**options: Any) -> None:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", passes)
        raise RuntimeError("Data processing error: no route to the store\nand more")

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: not constants.HF_HUB_DISABLE_XET)
    monkeypatch.setattr("huggingface_hub._commit_api._upload_xet_files", fails)
    assert unchecked(exported[1]) == (0 if passes else 2)
    err = capsys.readouterr().err
    if passes:
        assert hub.repositories[NAME].files("main") == sent(exported[1]) and len(waited) == 1
    else:
        assert "RuntimeError: Data processing error: no route to the store); go on" in err and err.count("\n") == 1


def test_how_long_it_waits() -> None:
    assert [_wait(number, None) for number in range(1, 6)] == [1, 2, 4, 8, 16]
    assert _wait(1, "7") == 7 and _wait(5, "0") == 0
    assert _wait(1, "9000") == 300  # no longer, whatever was asked for
    assert _wait(2, "Wed, 21 Oct 2026 07:28:00 GMT") == 2  # a date, which the hub does not send


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
