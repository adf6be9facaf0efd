#!/usr/bin/env python3
"""Trains on a CPU and compares the memory that the kernel saw with what `sinktrain plan` computes for it.

    .venv/bin/python scripts/measure_memory.py                              # four shapes, 3 to 4 minutes on one core
    .venv/bin/python scripts/measure_memory.py --samples 4 --length 512 --checkpointing
    .venv/bin/python scripts/measure_memory.py --model smollm2 --samples 4 --length 256 --mode sink_only   # or full

Each shape is trained for three optimizer steps by Lightning in a fresh process. The peak is the kernel's own: the
highest resident memory (VmHWM in /proc) after training began, less what was resident before the model was made, when a
small model had already been trained by the same code. malloc is told to give every large tensor back when it is freed,
so that what is resident is what is in use. Parameters, gradients and the optimizer's state must be equal to the byte;
with --mode sink_only (`model.tuning.mode`; its plan is in frozen_memory.py) to the size of the sink's row.
Exits with status 1 when a peak is off by more than 10%.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 16_000
MODEL = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048,
         "tie_word_embeddings": False}  # fmt: skip
SMOLLM2 = {**MODEL, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3, "tie_word_embeddings": True}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], int]] = {"40m": (MODEL, VOCABULARY), "smollm2": (SMOLLM2, 49_152)}
"""The configs to train, with random weights, and their vocabularies."""
SMALL = {**MODEL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SHAPES = ((1, 64, False), (8, 512, False), (1, 64, True), (16, 512, True))
"""Samples, positions, gradient checkpointing: few tokens, where the optimizer weighs most, and many."""
LARGEST_ERROR = 0.10
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="with --length, one shape instead of the four")
    parser.add_argument("--length", type=int)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "bf16-true"])
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "muon"])
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches an optimizer step")
    parser.add_argument("--model", default="40m", choices=list(MODELS))
    parser.add_argument("--mode", default="full", choices=["full", "sink_only"], help="what of it is trained")
    parser.add_argument("--layers", type=int, help="another depth")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a fresh process is told
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return 0
    shapes = SHAPES if options.samples is None else ((options.samples, options.length, options.checkpointing),)
    run = f"{options.model}, {options.mode}, {options.precision}, {options.optimizer}"
    print(f"{run}, {options.accumulate} micro-batches a step; MiB")
    heads = ("parameters", "gradients", "optimizer", "activations", "working", "planned", "measured", "planned is")
    print(f"{'samples':>7} {'length':>6} {'checkpointing':>13}" + "".join(f"{head:>12}" for head in heads))
    worst = max(abs(compare(options, *shape)) for shape in shapes)
    return int(worst > LARGEST_ERROR)


def compare(options: argparse.Namespace, samples: int, length: int, checkpointing: bool) -> float:
    """Prints a line; returns by what fraction the plan is off."""
    job = {"samples": samples, "length": length, "checkpointing": checkpointing, "precision": options.precision,
           "optimizer": options.optimizer, "accumulate": options.accumulate, "layers": options.layers,
           "model": options.model, "mode": options.mode}  # fmt: skip
    command = [sys.executable, __file__, "--measure", json.dumps(job)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    plan = planned(job)
    error = plan.total / found["peak"] - 1
    parts = [getattr(plan, part) / MIB for part in ("parameters", "gradients", "optimizer", "activations", "working")]
    row = 0 if options.mode == "full" else 16 * config_of(job)["hidden_size"]
    for part in ("parameters", "gradients", "optimizer"):  # exact sums over the tensors of the run
        if abs(found[part] - getattr(plan, part)) > row:
            sys.exit(f"{part}: the run had {found[part]:,} bytes, the plan has {getattr(plan, part):,}")
    cells = "".join(f"{part:>12.1f}" for part in [*parts, plan.total / MIB, found["peak"] / MIB])
    print(f"{samples:>7} {length:>6} {checkpointing!s:>13}{cells}{error:>+12.1%}", flush=True)
    return float(error)


def environment() -> dict[str, str]:
    """Of a process that is measured."""
    # Blocks from 64 KiB on are mapped one by one, and unmapped when they are freed.
    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000",
            "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip


def config_of(job: dict[str, Any]) -> dict[str, Any]:
    config = MODELS[job["model"]][0]
    return {**config, "num_hidden_layers": job["layers"] or config["num_hidden_layers"]}


def planned(job: dict[str, Any]) -> Any:
    """What `sinktrain plan --strategy cpu` computes, or what frozen_memory.py does for `sink_only`."""
    from frozen_memory import frozen_memory

    from sinktrain.planning.memory import memory
    from sinktrain.planning.settings import Settings
    from sinktrain.planning.skeleton import read_skeleton

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({"model": {"config": config_of(job)}}, file)
        file.flush()
        skeleton = read_skeleton(file.name, MODELS[job["model"]][1])
    if job["mode"] == "sink_only":
        return frozen_memory(skeleton, job["samples"], job["length"], job["precision"], job["checkpointing"])
    batch = job["samples"] * job["length"] * job["accumulate"]
    settings = Settings("cpu", 1, 8, 1, False, job["length"], job["samples"], batch, job["precision"],
                        job["optimizer"], job["checkpointing"])  # fmt: skip
    return memory(skeleton, settings)


def measure(job: dict[str, Any]) -> dict[str, int]:
    """Bytes of a real run, in this process."""
    import logging

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(folder, MODELS[job["model"]][1])
        train(SMALL, folder, {**job, "samples": 2, "length": 64})  # what is loaded and made once is there now
        before = status("VmRSS")
        model, optimizer = train(config_of(job), folder, job)
        peak = status("VmHWM")
    parameters = list(model.parameters())
    state = [value for values in optimizer.state.values() for value in values.values()]
    return {
        "peak": peak - before,
        "parameters": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimizer": sum(tensor.nbytes for tensor in state if hasattr(tensor, "nbytes")),
    }


def make_tokenizer(folder: str, vocabulary: int) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(vocabulary)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), unk_token="0")
    fast.save_pretrained(folder)


def train(config: dict[str, Any], folder: str, job: dict[str, Any]) -> tuple[Any, Any]:
    """Three optimizer steps on random tokens; returns the model and its optimizer."""
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import LambdaCallback
    from torch.utils.data import DataLoader

    module = make_module(config, folder, job)
    ids = torch.randint(MODELS[job["model"]][1], (3 * job["accumulate"] * job["samples"], job["length"]))
    ids[:, : len(module.sink_ids)] = torch.tensor(module.sink_ids)
    batches = DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=job["samples"])  # type: ignore[var-annotated, arg-type]
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision=job["precision"], max_steps=3, logger=False, gradient_clip_val=1.0,
        accumulate_grad_batches=job["accumulate"], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=LambdaCallback(on_train_start=reset_peak),
    )  # fmt: skip
    trainer.fit(module, batches)
    return module.model, trainer.optimizers[0]


def make_module(config: dict[str, Any], folder: str, job: dict[str, Any]) -> Any:
    """The module of a new model; where only a part of it is trained, of that model on disk."""
    from sinktrain.training import SinkModule
    from sinktrain.training.optimizer import OptimizerConfig

    options: dict[str, Any] = {"gradient_checkpointing": job["checkpointing"], "tokenizer": folder,
                               "optimizer": OptimizerConfig(name=job["optimizer"], warmup_steps=1)}  # fmt: skip
    if job["mode"] == "full":
        return SinkModule(config=config, **options)
    from sinktrain.base.models import model_from_config
    from sinktrain.training.tuning import TuningConfig

    name = str(Path(folder) / f"model-{config['hidden_size']}")
    # In bfloat16, as most models are stored: float32 weights would stay in the mapped file, the rows that grew twice.
    model_from_config(config, MODELS[job["model"]][1]).bfloat16().save_pretrained(name)
    return SinkModule(name=name, tuning=TuningConfig(mode=job["mode"]), **options)


def reset_peak(*_: Any) -> None:
    """From here on VmHWM is the highest of what follows: the model is made, and no file of it is being read."""
    Path("/proc/self/clear_refs").write_text("5")


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    sys.exit(main())
