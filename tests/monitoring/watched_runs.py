"""Short runs of a tiny model, for all tests of what watches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule

KINDS = ["none", "token", "zero", "logit", "kv"]
CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


class Losses(L.Callback):
    """The losses of all micro-batches' steps, as they are."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.found.append(float(trainer.callback_metrics.get("train/loss", torch.nan)))


def new_module(tokenizer: Path, kind: str = "token", config: dict[str, Any] | None = None, **fields: Any) -> SinkModule:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    sink = fields.pop("sink", SinkConfig(kind=kind))
    return SinkModule(
        config={**CONFIG, **(config or {})}, tokenizer=str(tokenizer), sink=sink, optimizer=optimizer, **fields
    )


def train(
    module: SinkModule, data: Path, folder: Path, callbacks: list[L.Callback], steps: int = 5, ckpt_path: Any = None,
    **fields: Any,
) -> L.Trainer:  # fmt: skip
    settings = {"logger": False, "limit_val_batches": 0, "enable_checkpointing": False, **fields}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=folder, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, gradient_clip_val=1.0,
        **settings,
    )  # fmt: skip
    trainer.fit(module, SinkDataModule(str(data), sequence_length=32, batch_size=2), ckpt_path=ckpt_path)
    return trainer
