"""What comes from elsewhere is read, and never run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_config, load_model, load_tokenizer
from sinktrain.cli import main
from sinktrain.data.prepared import PreparedText
from sinktrain.evaluation.results import read_results


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Evaluated(Payload):
    """The same by a builtin, without a class of this project's or the library's."""

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return tmp_path / "planted"


def verb_lines(checkpoint: Path, model: Path, data: Path, out: Path) -> dict[str, list[str]]:
    return {
        "export": ["export", "--checkpoint", str(checkpoint), "--out", str(out)],
        "evaluate": ["evaluate", "--model.name", str(checkpoint), "--text", str(data), "--out", str(out)],
        "generate": ["generate", "--model.name", str(checkpoint), "--prompt", "the", "--max_tokens", "2"],
        "fit": ["fit", "--model.name", str(model), "--data.path", str(data), "--data.sequence_length", "32",
                "--data.batch_size", "2", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu",
                "--trainer.logger", "false", "--trainer.default_root_dir", str(out), "--checkpoints.resume",
                str(checkpoint)],
    }  # fmt: skip


def test_the_payloads_work(planted: Path) -> None:
    for payload in (Payload(planted), Evaluated(planted)):
        pickle.loads(pickle.dumps(payload))
        assert planted.exists()
        planted.unlink()


@pytest.mark.parametrize("kind", ["touch", "eval", "beside the weights", "old format", "plain pickle"])
@pytest.mark.parametrize("verb", ["export", "evaluate", "generate", "fit"])
def test_a_checkpoint_with_a_payload_is_refused(
    verb: str, kind: str, plain_checkpoint: Path, model_folder: Path, prepared_folder: Path, tmp_path: Path,
    planted: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content: Any = torch.load(plain_checkpoint, weights_only=True)
    payload: Any = Evaluated(planted) if kind == "eval" else Payload(planted)
    content["sinktrain" if kind == "eval" else "more"] = payload
    if kind == "beside the weights":
        content["state_dict"]["model.more"] = payload
    bad = tmp_path / "bad.ckpt"
    if kind == "plain pickle":
        bad.write_bytes(pickle.dumps(payload))
    else:
        torch.save(content, bad, _use_new_zipfile_serialization=kind != "old format")
    line = verb_lines(bad, model_folder, prepared_folder, tmp_path / "out")[verb]
    capsys.readouterr()
    assert main(line) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sinktrain ")]
    assert (
        len(err) == 1 and ("bad.ckpt: cannot be read" if verb != "fit" else "bad.ckpt: holds no checkpoint") in err[0]
    )
    assert not planted.exists()


@pytest.mark.parametrize("force", ["0", "1"])
def test_weights_with_a_payload_are_refused(
    model_folder: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    weights: dict[str, Any] = dict(load_model(str(model_folder)).state_dict())
    torch.save(weights, folder / "pytorch_model.bin")
    load_model(str(folder))
    torch.save({**weights, "more": Payload(planted)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.name"):
        load_model(str(folder))
    assert not planted.exists()


def test_the_code_of_a_model_is_not_run_and_nobody_is_asked(
    model_folder: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answer(*question: Any) -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    code = f"from pathlib import Path\nPath({str(planted)!r}).touch()\n"
    (folder / "own.py").write_text(code + "class C: pass\n")
    for name, entries in (
        ("config.json", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.C", "own.C"]}),
    ):
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": entries, "model_type": "unheard_of", "tokenizer_class": "Own"}
        (folder / name).write_text(json.dumps(content))
    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"model\.name"):
            load(str(folder))
    assert not asked and not planted.exists()


def test_arrays_with_a_payload_are_refused(prepared_folder: Path, planted: Path, tmp_path: Path) -> None:
    array = np.array([Payload(planted)], dtype=object)
    results = tmp_path / "results"
    results.mkdir()
    (results / "results.json").write_text('{"schema": 2}')
    with (results / "nll.parquet").open("wb") as file:
        np.savez(file, a=array)
    with pytest.raises(UserError, match=r"--results .*is not a result folder"):
        read_results(results)
    (results / "nll.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(UserError, match=r"--results .*is not a result folder"):
        read_results(results)
    prepared = PreparedText(prepared_folder)
    prepared.folder = tmp_path
    np.save(tmp_path / "train.documents.npy", array)
    with pytest.raises(UserError, match=r"train\.documents\.npy is damaged"):
        prepared.documents("train")
    assert not planted.exists()


def test_yaml_files_make_no_objects(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{planted}']\n")
    assert main(["evaluate", "--config", str(tmp_path / "c.yaml"), "--print_config"]) == 2
    assert not planted.exists()
