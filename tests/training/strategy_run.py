"""A short training run for tests of several processes, started by torchrun or alone; prints nothing.

    torchrun --nproc-per-node 2 strategy_run.py OPTIONS.json

writes `rank-R.json` into the folder that the options name: losses, gradient norms, samples, the sink's row, validation.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import lightning as L  # noqa: E402
import torch  # noqa: E402

from sinktrain.data import SinkDataModule  # noqa: E402
from sinktrain.sinks import SinkConfig  # noqa: E402
from sinktrain.training import DDP, FSDP2, DeepSpeed, OptimizerConfig, SinkModule, TuningConfig  # noqa: E402
from sinktrain.training.base_quality import BaseQuality  # noqa: E402
from sinktrain.training.guards import GuardConfig  # noqa: E402

torch.set_num_threads(1)


def strategy(name: str) -> Any:
    """From a name such as `fsdp2`, `fsdp2-tensor2`, `zero3`, `zero2-offload`."""
    first, _, rest = name.partition("-")
    if first == "fsdp2":
        return FSDP2(tensor_parallel=int(rest.removeprefix("tensor") or 1))
    if first.startswith("zero"):
        stage = int(first[-1])
        return DeepSpeed(stage, offload_optimizer="offload" in rest, offload_parameters=bool(rest) and stage == 3)
    if name == "ddp":  # as configs/trainer/ddp.yaml
        return DDP()
    return name


class Recorder(L.Callback):
    """Keeps what each step was."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.samples: list[list[int]] = []
        self._step = 0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, index: int) -> None:
        if trainer.global_step == len(self.samples):
            self.samples.append([])
        self.samples[-1] += batch["samples"].tolist()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


class BadGradient(SinkModule):
    """One whose gradient on the last rank is not a number in a chosen step."""

    bad_step: int | None = None

    def losses(self, batch: Any) -> Any:
        objective, nll, tokens = super().losses(batch)
        trainer = self.trainer
        if trainer.global_step == self.bad_step and trainer.global_rank == trainer.world_size - 1 and self.training:
            objective.register_hook(lambda gradient: gradient * float("nan"))
        return objective, nll, tokens


def whole(parameter: Any) -> torch.Tensor:
    """A weight in full, whatever spreads it; all ranks ask."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach().clone()


def main(options: dict[str, Any]) -> None:
    """Trains as the options say."""
    recorder = Recorder()
    quality = BaseQuality(tokens=options.get("measured", 0), size=16)
    trainer = L.Trainer(
        accelerator="cpu", devices=options["ranks"], strategy=strategy(options["strategy"]),
        max_steps=options["steps"], accumulate_grad_batches=options.get("accumulate", 1), gradient_clip_val=0.5,
        precision=options.get("precision", "32-true"), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=options["out"], check_val_every_n_epoch=None, log_every_n_steps=5,
        val_check_interval=options["steps"] * options.get("accumulate", 1), callbacks=[recorder, quality],
    )  # fmt: skip
    optimizer = OptimizerConfig(**{"warmup_steps": 1, "learning_rate": 3e-3, **options.get("optimizer", {})})
    module = BadGradient(
        name=options["model"], optimizer=optimizer, sink=SinkConfig(**options.get("sink", {})), guard=GuardConfig(),
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        tuning=TuningConfig(**options.get("tuning", {})),
        dtype=options.get("dtype", "float32"),
        band=options.get("band"),
    )  # fmt: skip
    module.bad_step = options.get("bad_step")
    data = SinkDataModule(
        options["data"], sequence_length=32, batch_size=options["batch"], packing=options.get("packing", "chunk"),
        validation_batches=8 // options["batch"],
    )  # fmt: skip
    trainer.fit(module, data)
    embedding = whole(module.model.get_input_embeddings().weight)
    weights = [whole(parameter).double().norm().item() for parameter in module.parameters()]
    found = {
        "losses": recorder.losses, "norms": recorder.norms, "samples": recorder.samples,
        "sink": embedding[module.sink_ids].flatten().tolist(), "weights": weights,
        "skipped": int(trainer.callback_metrics["train/skipped_steps"]),
        "before": quality.before, "after": quality.after,
        "validation": float(trainer.callback_metrics["val/loss"]),
    }  # fmt: skip
    Path(options["out"], f"rank-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
