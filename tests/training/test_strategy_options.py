"""Choices of strategies that cannot be: a sentence each; what the strategies find in a model; no broadcast is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from forking import Ranks

from sinktrain.base.errors import UserError
from sinktrain.training import FSDP2, DeepSpeed
from sinktrain.training.sharding import layers


@pytest.mark.parametrize(("make", "words"), [
    (lambda: DeepSpeed(stage=4), r"trainer\.strategy\.stage 4: unknown"),
    (lambda: DeepSpeed(stage=2, offload_parameters=True), r"trainer\.strategy\.offload_parameters: needs stage 3"),
    (lambda: FSDP2(tensor_parallel=0), r"trainer\.strategy\.tensor_parallel 0"),
])  # fmt: skip
def test_strategies_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install deepspeed"):
        DeepSpeed()


@pytest.mark.parametrize(("options", "words"), [
    ({"strategy": "fsdp2-tensor3"}, "trainer.strategy.tensor_parallel 3: does not divide the 2 processes"),
    ({"strategy": "fsdp2-tensor2", "model": "no plan"}, "has no plan for it"),
    ({"strategy": "fsdp2-tensor2", "model": "heads"}, "tensor_parallel 2: does not divide the 1 heads"),
    ({"strategy": "fsdp2-tensor2", "sink": {"kind": "logit"}}, "does not split sinks of single heads"),
    ({"strategy": "fsdp2-tensor2", "tuning": {"mode": "lora"}}, "does not split what model.tuning.mode lora adds"),
    ({"strategy": "fsdp2-tensor2", "tuning": {"mode": "embed"}}, "does not split what model.tuning.mode embed adds"),
    ({"strategy": "zero2", "optimizer": {"name": "muon"}}, "optimizer.name muon: needs whole matrices"),
])  # fmt: skip
def test_runs_that_cannot_be(
    starter: Ranks, options: dict[str, Any], words: str, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    model = {"no plan": ("gpt2", {}), "heads": ("llama", {"num_key_value_heads": 1})}.get(options.get("model", ""))
    folder = model_folder
    if model is not None:
        import shutil

        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path / "model"
        shutil.copytree(model_folder, folder)
        fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 300, **model[1]}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(model[0], **fields)).save_pretrained(folder)
    settings = {"data": str(prepared_folder), "batch": 2, "steps": 2, "out": str(tmp_path / "run")}
    done = starter.run("strategy_run", {**settings, **options, "model": str(folder)}, 2, timeout=60)
    assert done.statuses == [1, 1] and words in done.out, done.out[-2000:]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3"])
def test_the_layers_of_a_model(family: str) -> None:
    found = layers(tiny_model(family))
    assert len(found) == 3 and len({type(layer) for layer in found}) == 1


def test_nothing_is_broadcast_between_steps(
    starter: Ranks, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """Lightning's flag before every batch is gone: a step exchanges its gradients and its sums, no more."""
    options = {"model": str(model_folder), "data": str(prepared_folder), "steps": 8, "batch": 2, "strategy": "ddp",
               "out": str(tmp_path / "run"), "count": True}  # fmt: skip
    done = starter.run("resume_run", options, 2)
    assert done.statuses == [0, 0], done.out[-2000:]
    counted = json.loads((tmp_path / "run" / "collectives.json").read_text())
    assert counted == {"all_reduce": 4}  # the sums of steps 2 to 5; DDP's own are made in C++
