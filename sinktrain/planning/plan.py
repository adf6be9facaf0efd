"""The verb `plan`: whether a run fits, how fast it will be at most and what it costs, without a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.terminal import say
from sinktrain.planning.advice import remedies
from sinktrain.planning.hardware import GPUS, Device, this_machine
from sinktrain.planning.memory import host_memory, memory, sizes
from sinktrain.planning.settings import Precision, Settings, Strategy
from sinktrain.planning.skeleton import Skeleton, check_length, read_skeleton
from sinktrain.planning.speed import Speed, expect
from sinktrain.planning.table import lines
from sinktrain.training.optimizer import OptimizerName

DOES_NOT_FIT = 1


def plan(
    model: str,
    vocabulary: int | None = None,
    strategy: Strategy = "gpu",
    gpus: int = 1,
    gpus_per_node: int = 8,
    tensor_parallel: int = 1,
    offload: bool = False,
    sequence_length: int = 2048,
    batch_size: int = 8,
    global_batch_tokens: int | None = None,
    precision: Precision = "bf16-mixed",
    optimizer: OptimizerName = "adamw",
    gradient_checkpointing: bool | None = None,
    gpu: Literal["a100-40", "a100-80", "h100", "h200"] = "h100",
    memory_gib: float | None = None,
    mfu: float = 0.35,
    price: float | None = None,
    tokens: float | None = None,
    out: Path | None = None,
) -> int:
    """Computes the memory of a training run, its speed and its cost, and refuses what cannot fit.

    A training step of the model's own code runs on tensors without data, so that nothing is downloaded, allocated or
    computed. Sinks of the kinds `none` and `token` are planned for; nothing is measured. Exit status 0: it fits; 1: it
    does not, and what would is named.

    Args:
        model: A YAML of `sinktrain fit` such as those in configs/model, or a folder or hub name of a pretrained model.
        vocabulary: The tokenizer's size, for a model to train from scratch.
        strategy: One device (`cpu`, `gpu`), copies of the model (`ddp`) or shards of it (`fsdp2`, ZeRO by DeepSpeed).
        gpus: How many GPUs in all.
        gpus_per_node: How many of them share a node and its memory.
        tensor_parallel: How many of them share each layer's matrices, with `fsdp2`.
        offload: Keep the optimizer's state on the host, and with deepspeed-zero3 the parameters.
        sequence_length: How many positions a sample has, its sinks among them.
        batch_size: How many samples a GPU computes at once, a micro-batch.
        global_batch_tokens: Positions an optimizer step takes, by several micro-batches if need be; by default one.
        precision: As `trainer.precision`.
        optimizer: As `model.optimizer.name`.
        gradient_checkpointing: Recompute activations in the backward pass; by default as the YAML says.
        gpu: The card.
        memory_gib: GiB of the device, instead of what `gpu` has or, for `cpu`, this machine.
        mfu: The fraction of the card's dense bf16 peak that is used: an assumption. Llama 3 was trained at 0.38 to 0.43
            (arXiv 2407.21783, table 4); fms-fsdp's 7,500 tokens/s a GPU for a 7B model on 96 H100s are about 0.35.
        price: Dollars for an hour of a GPU, for the cost; ask who rents them, since there is no default.
        tokens: How many positions to train on, for the time and the cost.
        out: The JSON file to write.

    Returns:
        The exit status.

    Raises:
        UserError: Options that do not go together.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu}: must be above 0 and at most 1; 0.35 is usual.")
    for option, value in (("--price", price), ("--tokens", tokens), ("--memory_gib", memory_gib)):
        at_least(option, 0 if value is None else value, 0)
    settings = Settings(
        strategy, gpus, gpus_per_node, tensor_parallel, offload, sequence_length, batch_size, global_batch_tokens,
        precision, optimizer, bool(gradient_checkpointing),
    )  # fmt: skip
    skeleton = read_skeleton(model, vocabulary)
    check_length(skeleton, sequence_length)
    if gradient_checkpointing is None:
        settings = replace(settings, gradient_checkpointing=skeleton.checkpointing)
    device = this_machine() if strategy == "cpu" else GPUS[gpu]
    if memory_gib is not None:
        device = replace(device, gib=memory_gib)
    record = _record(skeleton, settings, device, expect(skeleton, settings, device, mfu, price, tokens))
    record["gpu"] = None if strategy == "cpu" else gpu
    for line in lines(record):
        say(line)
    if out is not None:
        _write(Path(out), record)
    return 0 if record["fits"] else DOES_NOT_FIT


def _record(skeleton: Skeleton, settings: Settings, device: Device, speed: Speed) -> dict[str, Any]:
    """What is written with --out; memory in bytes."""
    found = memory(skeleton, settings)
    fits = found.total <= device.usable
    advice = [] if fits else remedies(skeleton, settings, device)
    return {
        "model": skeleton.name,
        "parameters": sizes(skeleton, settings.optimizer, 1, 1).all,
        "layers": skeleton.layers,
        "settings": {**asdict(settings), "accumulated": settings.accumulated},
        "step_tokens": settings.accumulated * settings.micro_batch_tokens,
        "memory": {**asdict(found), "total": found.total},
        "host_memory": host_memory(skeleton, settings),
        "device_gib": device.gib,
        "usable": device.usable,
        "fits": fits,
        "would_fit": [{"options": remedy.changed, "total": remedy.total, "words": str(remedy)} for remedy in advice],
        "speed": asdict(speed),
    }


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); choose another file.") from error
    say(f"plan: {path}")
