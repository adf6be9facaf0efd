"""The speed that is logged, on a clock that the test turns, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import tiny_model
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from test_golden import CONFIG
from test_training import trainer

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.flops import flops_per_token, peak_flops
from sinktrain.training.throughput import Throughput, _gather


class Clock:
    """Seconds that pass only where the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passing(self, seconds: float, function: Any) -> Any:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slow


class Laps(L.Callback):
    """What was logged, by optimizer step."""

    def __init__(self) -> None:
        self.laps: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("speed/")}
        if figures and figures not in self.laps.values():
            self.laps[trainer.global_step] = figures


def run(
    tokenizer: Path, data: Path, folder: Path, steps: int, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    more: tuple[L.Callback, ...] = (), **fields: Any,
) -> tuple[Laps, Throughput, L.Trainer]:  # fmt: skip
    """A batch takes 1 second, fetching it a quarter, a validation 100 and a checkpoint 1,000."""
    module = SinkModule(
        config=CONFIG, tokenizer=str(tokenizer), sink=SinkConfig(), optimizer=OptimizerConfig(warmup_steps=1)
    )
    throughput, laps = Throughput(peak_flops=1e6), Laps()
    throughput.clock = clock
    monkeypatch.setattr(module, "training_step", clock.passing(1.0, module.training_step))
    monkeypatch.setattr(module, "validation_step", clock.passing(100.0, module.validation_step))
    monkeypatch.setattr(module, "on_save_checkpoint", clock.passing(1000.0, module.on_save_checkpoint))
    monkeypatch.setattr(CombinedLoader, "__next__", clock.passing(0.25, CombinedLoader.__next__))
    fit = trainer(folder, steps, callbacks=[throughput, laps, *more], **fields)
    fit.fit(module, SinkDataModule(str(data), sequence_length=32, batch_size=4))
    return laps, throughput, fit


def test_speed_by_hand(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches a step; validations and a checkpoint in between are not training."""
    clock = Clock()
    laps, throughput, fit = run(
        tokenizer_folder, prepared_folder, tmp_path, 8, clock, monkeypatch, accumulate_grad_batches=2,
        log_every_n_steps=2, limit_val_batches=1, val_check_interval=3, check_val_every_n_epoch=None,
    )  # fmt: skip
    rate = 4 * 4 * 32 / (4 * 1.25)  # four batches of four samples of 32 positions, each in 1.25 seconds
    assert sorted(laps.laps) == [2, 4, 6, 8]
    model: Any = fit.lightning_module.model  # type: ignore[union-attr]
    for found in laps.laps.values():
        assert found["speed/tokens_per_second"] == pytest.approx(rate)
        assert found["speed/data_wait"] == pytest.approx(0.2)
        assert found["speed/mfu"] == pytest.approx(rate * flops_per_token(model, 32) / 1e6)
        assert 0.05 < found["speed/memory_gib"] < 20
    assert throughput.tokens_per_second == pytest.approx(rate)
    # Time left is wall time, validation and all: by the pace since the first log step.
    first, last = laps.laps[2]["speed/hours_left"], laps.laps[8]["speed/hours_left"]
    assert first > 6 * 2 * 1.25 / 3600 and last == 0
    between = 8 * 1.25 + 2 * 100.25  # from step 2 to 6: eight batches, validations after the sixth and the ninth
    assert laps.laps[6]["speed/hours_left"] == pytest.approx(2 * between / 4 / 3600)


def test_a_checkpoint_is_not_training(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    save = L.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=3)
    laps, _, _ = run(
        tokenizer_folder, prepared_folder, tmp_path, 8, clock, monkeypatch, (save,), log_every_n_steps=2,
        enable_checkpointing=True,
    )  # fmt: skip
    assert clock.now > 2000 and len(list(tmp_path.glob("*.ckpt"))) == 1
    assert [found["speed/tokens_per_second"] for found in laps.laps.values()] == pytest.approx([4 * 32 / 1.25] * 4)


def test_the_profiler_is_left_as_it_was(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    _, _, fit = run(tokenizer_folder, prepared_folder, tmp_path, 2, clock, monkeypatch)
    assert {"start", "stop"}.isdisjoint(vars(fit.profiler))

    def fails(*args: Any) -> None:
        assert {"start", "stop"} <= vars(args[0].profiler).keys()
        raise RuntimeError("in the middle")

    module = SinkModule(config=CONFIG, tokenizer=str(tokenizer_folder), optimizer=OptimizerConfig(warmup_steps=1))
    failing = L.pytorch.callbacks.LambdaCallback(on_train_batch_end=fails)
    again = trainer(tmp_path, 2, callbacks=[Throughput(), failing])
    with pytest.raises(RuntimeError, match="in the middle"):
        again.fit(module, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4))
    assert {"start", "stop"}.isdisjoint(vars(again.profiler))


def test_the_figures_of_all_ranks_come_together() -> None:
    def all_gather(figures: torch.Tensor) -> torch.Tensor:
        return torch.stack([figures, 2 * figures])

    ranks: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(all_gather=all_gather))
    assert _gather(ranks, torch.tensor([1.0, 2.0, 3.0])) == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    assert _gather(SimpleNamespace(world_size=1), torch.tensor([5.0])) == [[5.0]]  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_token(tied: bool) -> None:
    """Llama by its shapes: a tied embedding works as the head, another one only looks rows up."""
    model = tiny_model("llama", tie_word_embeddings=tied)
    d, heads, key_heads, wide, layers, rows = 32, 4, 2, 48, 3, 97
    matrices = layers * (2 * d * d + 2 * d * d * key_heads // heads + 3 * d * wide) + rows * d
    norms = (2 * layers + 1) * d
    assert flops_per_token(model, 20) == 6 * (matrices + norms) + 12 * layers * d * 20


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_peak_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"throughput\.peak_flops"):
        Throughput(peak_flops=0)
