"""What makes a step fast must not change it: compilation, recomputed activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_golden import CONFIG
from test_training import Recorder, trainer

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule

KINDS = ["none", "token", "zero", "logit", "kv"]


def losses(tokenizer: Path, data: Path, folder: Path, steps: int = 3, **fields: Any) -> list[float]:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    module = SinkModule(config=CONFIG, tokenizer=str(tokenizer), optimizer=optimizer, **fields)
    recorder = Recorder()
    fit = trainer(folder, steps, callbacks=[recorder], gradient_clip_val=1.0)
    fit.fit(module, SinkDataModule(str(data), sequence_length=32, batch_size=4))
    assert all(name.startswith("model.") and "_orig_mod" not in name for name in module.state_dict())
    return recorder.losses


@pytest.fixture
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiler's front end without its code generation, which takes a minute; tells what was compiled."""
    compiled: list[str] = []
    real = torch.compile

    def quick(function: Any, **options: Any) -> Any:
        compiled.append(function.__qualname__)
        return real(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", quick)
    monkeypatch.setattr("sinktrain.training.loss._cache", [])
    return compiled


@pytest.mark.parametrize("kind", KINDS)
def test_compilation_changes_no_loss(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, quick_backend: list[str], kind: str
) -> None:
    sink = SinkConfig(kind=kind)
    eager = losses(tokenizer_folder, prepared_folder, tmp_path, sink=sink)
    assert quick_backend == []
    compiled = losses(tokenizer_folder, prepared_folder, tmp_path, sink=sink, compile=True)
    assert len(quick_backend) == 2  # the inner model and the loss
    assert len(eager) == 3
    assert compiled == pytest.approx(eager, abs=1e-5)


@pytest.mark.slow
def test_the_default_compiler_changes_no_loss(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    eager, compiled = (
        losses(tokenizer_folder, prepared_folder, tmp_path, compile=compile) for compile in (False, True)
    )
    assert compiled == pytest.approx(eager, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_no_loss(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: str
) -> None:
    sink = SinkConfig(kind=kind)
    kept, recomputed = (
        losses(tokenizer_folder, prepared_folder, tmp_path, sink=sink, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert recomputed == pytest.approx(kept, abs=1e-6)


def test_a_negative_z_loss_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.z_loss -1"):
        SinkModule(config=CONFIG, tokenizer=str(tokenizer_folder), z_loss=-1)
