"""Trains with `sinktrain fit`, in the way of a user; started by scripts/bench_training.py.

PYTHONPATH=scripts .venv/bin/python -m peers.run_sinktrain JOB.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from peers.step_clock import StepClock, read_job, write_result
from sinktrain.cli import main


class Clock(L.Callback):
    """Times the steps, and writes the result.

    Args:
        job: the file of the job.
    """

    def __init__(self, job: str) -> None:
        self.job: dict[str, Any] = json.loads(Path(job).read_text())
        self.loss: float | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.clock = StepClock(trainer.optimizers[0], self.job["device"])

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.loss is None and trainer.global_step == 1:
            self.loss = float(trainer.callback_metrics["train/loss"])

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert self.loss is not None
        write_result(self.job, self.clock, self.loss, sum(p.numel() for p in module.parameters()))


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """What `sinktrain fit` reads."""
    optimizer = {"learning_rate": job["learning_rate"], "warmup_steps": job["learning_rate_warmup"]}
    optimizer |= {"weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8, "final_fraction": 0.1}
    positions = job["batch_size"] * job["length"] * job["accumulation"]
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "gpu" if job["device"].startswith("cuda") else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if job["precision"] == "bf16" else "32-true",
            "max_steps": job["steps"],
            "gradient_clip_val": 1.0,
            "limit_val_batches": 0,
            "log_every_n_steps": job["log_every"],
            "logger": False,
            "enable_checkpointing": False,
            "default_root_dir": str(Path(job["data"]).parent),  # where its config.yaml goes
        },
        "model": {
            "name": job["model"],
            "compile": job["compile"],
            "sink": {"kind": job["contestant"]},
            "optimizer": optimizer,
        },
        "data": {
            "path": job["data"],
            "sequence_length": job["length"],
            "batch_size": job["batch_size"],
            "global_batch_tokens": positions,
        },
    }


if __name__ == "__main__":
    file = Path(sys.argv[1]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings(read_job())))
    clock = json.dumps({"class_path": "peers.run_sinktrain.Clock", "init_args": {"job": sys.argv[1]}})
    sys.exit(main(["fit", "--config", str(file), f"--trainer.callbacks+={clock}"]))
