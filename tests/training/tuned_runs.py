"""Short runs of the modes of tuning, for the tests of what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import Recorder, trainer
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.training import OptimizerConfig, SinkModule, TuningConfig

MODES = ["sink_only", "embed", "lora", "full"]


def make(folder: Path, mode: str, **fields: Any) -> SinkModule:
    tuning = TuningConfig(mode=mode, distill=fields.pop("distill", 0.0))  # type: ignore[arg-type]
    fields = {"optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=1), **fields}
    return SinkModule(name=str(folder), tuning=tuning, **fields)


def fitted(module: SinkModule, data: Path, folder: Path, steps: int = 4, **fields: Any) -> Recorder:
    recorder = Recorder()
    fields.setdefault("callbacks", []).append(recorder)
    batches = SinkDataModule(str(data), sequence_length=32, batch_size=4)
    trainer(folder, steps, gradient_clip_val=0.5, **fields).fit(module, batches)
    return recorder


def changed(module: SinkModule, start: dict[str, Tensor]) -> set[str]:
    now = module.model.state_dict()
    return {name for name in start if not torch.equal(now[name], start[name])}


def batch(module: SinkModule, count: int = 1, documents: bool = False) -> dict[str, Tensor]:
    """Three rows; with `documents`, each of two documents and padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 90, (3, 24), generator=generator)
    count = min(count, len(module.sink_ids))
    positions = torch.arange(24).expand(3, -1).clone()
    starts = [0, 10] if documents else [0]
    for start in starts:
        positions[:, start:] = torch.arange(24 - start)
        ids[:, start : start + count] = torch.tensor(module.sink_ids)
    labels = ids.clone()
    labels[torch.isin(ids, torch.tensor(module.sink_ids))] = -100
    if documents:
        ids[:, 20:], labels[:, 20:], positions[:, 20:] = 0, -100, torch.arange(4)
    found = {"input_ids": ids, "labels": labels}
    return found | ({"position_ids": positions} if documents else {})


def refused(words: str, **fields: Any) -> None:
    with pytest.raises(UserError, match=words):
        SinkModule(**fields).configure_model()
