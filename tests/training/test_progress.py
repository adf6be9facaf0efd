"""The progress bar shows figures, and reads them on log steps only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_golden import CONFIG
from test_training import trainer
from torch.utils._python_dispatch import TorchDispatchMode

from sinktrain.cli import main
from sinktrain.data import SinkDataModule
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.fit import in_order
from sinktrain.training.garbage import GarbageCollection
from sinktrain.training.progress import ProgressBar
from sinktrain.training.throughput import Throughput


class Reads(TorchDispatchMode):
    """Counts how often a number is read out of a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


class Shown(ProgressBar):
    """Keeps what is shown after every micro-batch, and how many reads there had been."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads, self.kept = reads, list[tuple[int, int, dict[str, Any]]]()

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        found = super().get_metrics(trainer, pl_module)
        self.kept.append((trainer.global_step, self.reads.count, found))
        return found


def test_figures_come_from_log_steps(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SinkModule(config=CONFIG, tokenizer=str(tokenizer_folder), optimizer=OptimizerConfig(warmup_steps=1))
    data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4)
    with Reads() as reads:
        bar = Shown(reads)
        fit = trainer(tmp_path, 12, callbacks=[bar, Throughput(peak_flops=1e12), GarbageCollection(2)],
                      enable_progress_bar=True, log_every_n_steps=5, limit_val_batches=1, val_check_interval=6,
                      accumulate_grad_batches=2, check_val_every_n_epoch=None)  # fmt: skip
        in_order(fit)
        assert fit.callbacks[-1] is bar
        fit.fit(module, data)
    by_step = {step: shown for step, _, shown in bar.kept}
    assert "loss" not in by_step[4]
    for step in (5, 10):
        assert by_step[step].keys() >= {"loss", "tokens/s", "mfu", "hours left"}
        assert by_step[step]["tokens/s"] > 0 and by_step[step]["loss"] > 1
    assert by_step[9]["loss"] == by_step[5]["loss"] != by_step[10]["loss"]
    assert by_step[9]["tokens/s"] == by_step[5]["tokens/s"] != by_step[10]["tokens/s"]
    assert "val/loss" in by_step[7]
    # Between steps 6 and 9 there is no log step and no validation, but a collection.
    quiet = [count for step, count, _ in bar.kept if step in (7, 8)]
    assert len(quiet) >= 4 and len(set(quiet)) == 1
    assert torch.isfinite(torch.tensor(by_step[10]["loss"]))


def test_the_bar_of_fit_comes_last(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the speed it shows is that of the same step as the loss."""
    order: list[list[Any]] = []
    real = ProgressBar.setup

    def setup(self: ProgressBar, trainer: Any, *args: Any, **kwargs: Any) -> None:
        order.append(trainer.callbacks)
        real(self, trainer, *args, **kwargs)

    monkeypatch.setattr(ProgressBar, "setup", setup)
    settings = {
        "model": {"config": CONFIG, "tokenizer": str(tokenizer_folder), "optimizer": {"warmup_steps": 0}},
        "data": {"path": str(prepared_folder), "sequence_length": 32, "batch_size": 2},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                    "default_root_dir": str(tmp_path), "limit_val_batches": 0, "enable_progress_bar": True,
                    "callbacks": [{"class_path": "sinktrain.training.progress.ProgressBar"}]},
    }  # fmt: skip
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "fit.yaml")]) == 0
    names = [type(callback).__name__ for callback in order[0]]
    before = names[: names.index("ProgressBar")]
    assert {"Throughput", "GarbageCollection", "RecordRun"} <= set(before)
