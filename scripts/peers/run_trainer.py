"""Trains with `transformers.Trainer`; started by scripts/bench_training.py.

    PYTHONPATH=scripts .venv/bin/python -m peers.run_trainer JOB.json

Its defaults stand, but for what the comparison makes equal for all (batches and their order, precision, threads, fused
AdamW, clipping, schedule), and what would cost it time for nothing: no evaluation, no checkpoints, no progress bar.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from peers.step_clock import StepClock, read_job, write_result


class Rows(Dataset[dict[str, Tensor]]):
    """Samples (n, T) int64 of a file, mapped into memory."""

    def __init__(self, path: str) -> None:
        self._rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = torch.from_numpy(np.array(self._rows[index]))
        return {"input_ids": row, "labels": row}


class Clock(TrainerCallback):
    """Times the steps."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        optimizer = given["optimizer"]
        self.clock = StepClock(getattr(optimizer, "optimizer", optimizer), self.device)


def run(job: dict[str, Any]) -> None:
    """Trains, and writes the result."""
    arguments = TrainingArguments(
        output_dir=str(Path(job["result"]).parent / "trainer"),
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch_size"],
        gradient_accumulation_steps=job["accumulation"],
        train_sampling_strategy="sequential",
        optim="adamw_torch_fused",
        learning_rate=job["learning_rate"],
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=job["learning_rate_warmup"],
        bf16=job["precision"] == "bf16",
        torch_compile=job["compile"],
        use_cpu=job["device"] == "cpu",
        logging_steps=job["log_every"],
        logging_first_step=True,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=job["device"] != "cpu",
    )
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    clock = Clock(job["device"])
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(job["rows"]), callbacks=[clock])
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    write_result(job, clock.clock, float(loss), sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    run(read_job())
