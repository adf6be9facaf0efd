"""What `sinktrain plan` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sinktrain.planning.hardware import GIB, HELD_BACK_FRACTION, HELD_BACK_GIB

PARTS = ("parameters", "gradients", "optimizer", "activations", "working")


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The lines; `record` as in the JSON file."""
    settings, found = record["settings"], record["memory"]
    recomputed = ", gradient checkpointing" if settings["gradient_checkpointing"] else ""
    yield (
        f"{record['model']}: {record['parameters']:,} parameters in {record['layers']} layers; {_where(record)}, "
        f"{settings['precision']}, {settings['optimizer']}{recomputed}"
    )
    times = settings["accumulated"]
    yield (
        f"micro-batch {settings['batch_size']} x {settings['sequence_length']:,} positions a "
        f"{'process' if settings['strategy'] == 'cpu' else 'GPU'}; "
        f"{record['step_tokens']:,} positions an optimizer step" + (f", in {times} micro-batches" if times > 1 else "")
    )
    yield ""
    yield f"{'':<14}{'GiB':>9}  computed, not measured"
    for part in PARTS:
        yield f"{part:<14}{found[part] / GIB:>9.3f}  {found['notes'][part]}"
    yield f"{'total':<14}{found['total'] / GIB:>9.3f}"
    yield (
        f"{'capacity':<14}{record['usable'] / GIB:>9.3f}  {record['device_gib']:.1f} less {HELD_BACK_GIB:g} for the "
        f"context and {HELD_BACK_FRACTION:.0%} for gaps between blocks: an assumption"
    )
    host = f"{'host a node':<14}{record['host_memory'] / GIB:>9.3f}  "
    if settings["strategy"] != "cpu":
        moved = found["moved"] * min(settings["gpus"], settings["gpus_per_node"]) >= record["host_memory"]
        yield host + ("what is kept there" if moved else "the model in float32, should every process make it there")
    yield ""
    yield from _verdict(record)
    yield from _speed(record["speed"], settings)


def _where(record: dict[str, Any]) -> str:
    settings = record["settings"]
    if settings["strategy"] == "cpu":
        return "one process on a CPU"
    parts = settings["tensor_parallel"]
    how = settings["strategy"] + (f" x tensor parallel {parts}" if parts > 1 else "")
    offloaded = " with offload" if settings["offload"] else ""
    count = settings["gpus"]
    return f"{how}{offloaded} on {count} {record['gpu']}"


def _verdict(record: dict[str, Any]) -> Iterator[str]:
    spare = (record["usable"] - record["memory"]["total"]) / GIB
    if record["fits"]:
        yield f"fits, with {spare:.1f} GiB to spare"
        return
    words = "; or ".join(remedy["words"] for remedy in record["would_fit"])
    yield f"does not fit: {-spare:.1f} GiB too much; " + (
        f"this fits: {words}" if words else "nothing that was tried fits; choose a larger card or a shorter sequence"
    )


def _speed(speed: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    if speed["tokens_per_second"] is None:
        yield "speed: not computed, since only the bf16 peaks of GPUs are known"
        return
    each = speed["tokens_per_second"] / settings["gpus"]
    yield (
        f"speed: {speed['tokens_per_second']:,.0f} tokens/s, {each:,.0f} a GPU, at an assumed MFU of {speed['mfu']:g}"
    )
    if speed["hours"] is not None:
        yield f"time: {speed['hours']:,.1f} hours for {speed['tokens']:,.0f} tokens"
    if speed["dollars"] is not None:
        yield (f"cost: ${speed['dollars']:,.0f}, at an assumed ${speed['price']:g} for a GPU hour and no restart")
