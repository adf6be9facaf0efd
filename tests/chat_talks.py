"""Conversations, and a module that keeps what it is trained on, for the tests of chat data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from conftest import WORDS

from sinktrain.base.models import fingerprint, load_tokenizer
from sinktrain.data import PreparedText, SinkDataModule
from sinktrain.data.packing import IGNORED
from sinktrain.data.prepared import SPLITS
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens

Messages = list[dict[str, str]]


def talks(count: int, seed: int = 0) -> list[Messages]:
    """Some of one turn, some longer than a sample of 64."""
    rng = random.Random(seed)

    def some() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice([1, 3, 8, 20])))

    return [
        [{"role": role, "content": some()} for _ in range(rng.choice([1, 1, 2, 5])) for role in ("user", "assistant")]
        for _ in range(count)
    ]


def write(path: Path, rows: list[Any], field: str = "messages") -> str:
    path.write_text("".join(json.dumps({field: row}) + "\n" for row in rows))
    return str(path)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pairs_of(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Tokens and whether they are trained on, of every conversation of both splits."""
    text, found = PreparedText(folder), []
    for split in SPLITS:
        cuts, trained = text.documents(split)[1:], text.trained(split)
        assert trained is not None
        parts = zip(np.split(text.tokens(split), cuts), np.split(trained, cuts), strict=True)
        found += [(ids.tolist(), flags.tolist()) for ids, flags in parts]
    return found


class Model(L.LightningModule):
    """Has what a DataModule asks of the model, and keeps every batch."""

    def __init__(self, tokenizer: str, sinks: int = 1) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer_fingerprint, self.trained_length = fingerprint(self.tokenizer), None
        self.sink_ids = add_sink_tokens(self.tokenizer, SinkConfig(count=sinks))
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        assert (batch["labels"] != IGNORED).any()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Model, root: Path, data: SinkDataModule, resume: Path | None = None, steps: int = 4) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=root, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=resume, weights_only=False if resume else None)
    return trainer
