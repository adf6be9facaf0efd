"""Finding, loading and making models and tokenizers: what works, and what a mistake is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sinktrain.base.errors import UserError
from sinktrain.base.models import (
    Location,
    fingerprint,
    load_model,
    load_tokenizer,
    locate,
    model_from_config,
    trained_length,
)

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def byte_pair_encoder() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(
        ["the cat sat on the mat"] * 3, trainers.BpeTrainer(vocab_size=40, show_progress=False)
    )
    return tokenizer


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    byte_pair_encoder().save(str(file))
    return file


def assert_one_sentence(error: UserError, option: str) -> None:
    text = str(error)
    assert text.startswith(option) and text.endswith(".") and "\n" not in text
    assert not re.search(r"Traceback|File \"|Error:", text), text


def test_a_folder_and_a_gguf_file_and_a_hub_name_are_found(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert locate(str(tmp_path)) == Location(str(tmp_path))
    assert locate(str(tmp_path / "m.gguf")) == Location(str(tmp_path), "m.gguf")
    assert locate("someone/model") == Location("someone/model")
    assert Location("a", "m.gguf").arguments == {"gguf_file": "m.gguf"} and Location("a").arguments == {}


@pytest.mark.parametrize("inside", ["data/m.gguf", "data/config.json", None])
def test_the_model_inside_a_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str | None
) -> None:
    package = tmp_path / f"carrier_{inside is None}_{len(inside or '')}"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"package:{package.name}"
    if inside is None:
        with pytest.raises(UserError) as caught:
            locate(name)
        assert_one_sentence(caught.value, "model.name")
        return
    (package / inside).touch()
    assert locate(name) == Location(str(package / "data"), "m.gguf" if inside.endswith("gguf") else None)


WRONG_NAMES = ["./missing", "/missing/model", "~/missing-model", "missing.gguf", "a/b/c", "", "package:no_such_package"]


@pytest.mark.parametrize("name", WRONG_NAMES)
@pytest.mark.parametrize("load", [locate, load_tokenizer, load_model])
def test_a_wrong_name_is_told_in_one_sentence(name: str, load: Callable[..., Any]) -> None:
    with pytest.raises(UserError) as caught:
        load(name, option="--base")
    assert_one_sentence(caught.value, "--base")


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
@pytest.mark.parametrize(
    "files", [{}, {"config.json": "{}"}, {"config.json": "not json"}, {"config.json": '{"model_type": "x"}'}]
)
def test_a_folder_without_a_model_is_told_in_one_sentence(
    tmp_path: Path, load: Callable[..., Any], files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(tmp_path), option="--base")
    assert_one_sentence(caught.value, "--base")


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
@pytest.mark.parametrize("name", ["notes.txt", "broken.gguf"])
def test_a_file_that_is_no_model_is_told_in_one_sentence(tmp_path: Path, load: Callable[..., Any], name: str) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / name), option="--base")
    assert_one_sentence(caught.value, "--base")


def test_a_broken_tokenizer_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path / "tokenizer.json"), option="--tokenizer")
    assert_one_sentence(caught.value, "--tokenizer")


def test_what_was_saved_is_loaded(tmp_path: Path, encoder_file: Path) -> None:
    model = model_from_config(TINY, vocabulary=40)
    model.save_pretrained(tmp_path / "model")
    again = load_model(str(tmp_path / "model"))
    assert again.dtype == torch.float32
    assert load_model(str(tmp_path / "model"), dtype=torch.bfloat16).dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    tokenizer = load_tokenizer(str(encoder_file))
    tokenizer.save_pretrained(tmp_path / "model")
    assert load_tokenizer(str(tmp_path / "model")).encode("the cat") == tokenizer.encode("the cat") != []


def test_weights_cut_short_are_told_in_one_sentence(tmp_path: Path) -> None:
    model_from_config(TINY, vocabulary=40).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), option="--base")
    assert_one_sentence(caught.value, "--base")


def test_the_fingerprint_ignores_added_tokens(encoder_file: Path) -> None:
    plain, added = load_tokenizer(str(encoder_file)), load_tokenizer(str(encoder_file))
    assert added.add_special_tokens({"bos_token": "<sink>"}) == 1
    assert fingerprint(plain) == fingerprint(added)


@pytest.mark.parametrize("change", ["merge", "normalizer", "pre_tokenizer"])
def test_the_fingerprint_sees_what_changes_the_tokens(tmp_path: Path, change: str) -> None:
    parts = json.loads(byte_pair_encoder().to_str())
    before = fingerprint(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts))))
    if change == "merge":
        merges = parts["model"]["merges"]
        assert len(merges) > 2
        merges[0], merges[1] = merges[1], merges[0]
    else:
        parts[change] = {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}}[change]
    after = fingerprint(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts))))
    assert before != after


def test_a_model_from_a_config_depends_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = model_from_config(TINY, vocabulary=40, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(456)
    same, other = model_from_config(TINY, vocabulary=40, seed=1), model_from_config(TINY, vocabulary=40, seed=2)
    weights = [model.state_dict()["model.embed_tokens.weight"] for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].shape == (40, 16) and weights[0].dtype == torch.float32
    assert trained_length(first.config) == 64


@pytest.mark.parametrize("change", [{"model_type": None}, {"model_type": "no-such"}, {"num_attention_heads": "x"}])
def test_a_wrong_config_is_told_in_one_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        model_from_config(TINY | change, vocabulary=40)
    assert_one_sentence(caught.value, "model.config:")
    named = next(iter(change))
    assert named in str(caught.value) and len(str(caught.value)) < 300


def test_a_folder_without_any_weights_says_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        load_model(str(tmp_path))
    assert capfd.readouterr().err == ""


def test_finding_imports_nothing_heavy() -> None:
    code = "import sys, sinktrain.base.models as m; m.locate('a/b'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
