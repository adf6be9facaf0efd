"""What makes a step fast must not change it: compilation, recomputed activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_golden import CONFIG
from test_training import Recorder, trainer
from torch.utils._python_dispatch import TorchDispatchMode

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.throughput import Throughput

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
    monkeypatch.setattr("sinktrain.training.chunked._cache", [])
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


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a number out of a tensor, or its true entries."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.count += name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
        return func(*args, **(kwargs or {}))

    def counting(self, method: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)

        return counted


class WaitsByStep(L.Callback):
    """The count at the end of every step."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self.counts = waits, []

    def on_train_batch_end(self, *_: Any) -> None:
        self.counts.append(self.waits.count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_no_step_waits_for_the_device(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two log steps, forward and backward, the loss, the guard, clipping, optimizer and schedule."""
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2, warmup_steps=2)
    module = SinkModule(config=CONFIG, tokenizer=str(tokenizer_folder), optimizer=optimizer, sink=SinkConfig(kind=kind))
    data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4)
    with Waits() as waits:
        for way in ("tolist", "numpy", "cpu"):  # which wait on a GPU, and read memory without a word on a CPU
            monkeypatch.setattr(torch.Tensor, way, waits.counting(getattr(torch.Tensor, way)))
        callback = WaitsByStep(waits)
        fit = trainer(tmp_path, 12, callbacks=[callback, Throughput()], gradient_clip_val=1.0, log_every_n_steps=10,
                      accumulate_grad_batches=2)  # fmt: skip
        fit.fit(module, data)
        before = waits.count
        float(torch.ones(1).sum())
        assert waits.count == before + 1
    assert len(callback.counts) == 24
    by_batch = [after - before for before, after in zip(callback.counts, callback.counts[1:], strict=False)]
    assert by_batch[1:17] == [0] * 16  # batches 3 to 18: the first steps set up, step 10 is logged
    assert by_batch[19] > 0  # where it is


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
