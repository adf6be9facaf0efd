"""What would fit instead of what does not: each remedy is planned itself before it is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.planning.hardware import GIB, Device
from sinktrain.planning.memory import memory
from sinktrain.planning.settings import Settings
from sinktrain.planning.skeleton import Skeleton

SHARDED = ("fsdp2", "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3")
MOST_GPUS = 4096


@dataclass(frozen=True)
class Remedy:
    """Options to change, and the settings that they make."""

    changed: dict[str, Any]
    settings: Settings
    total: float

    def __str__(self) -> str:
        options = " ".join(f"--{name} {str(value).lower()}" for name, value in self.changed.items())
        return f"{options} ({self.total / GIB:.1f} GiB)"


def largest_batch(skeleton: Skeleton, settings: Settings, device: Device) -> int | None:
    """The largest micro-batch below that of `settings` that fits and divides its global batch; None for none."""
    sizes = [size for size in range(1, settings.batch_size) if _changed(settings, batch_size=size)]
    low, high = 0, len(sizes)  # memory grows with the batch: the first `low` fit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        if _try(skeleton, settings, device, batch_size=sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None


def remedies(skeleton: Skeleton, settings: Settings, device: Device) -> list[Remedy]:
    """Changes to one thing that make it fit; if there are none, one change to all of them; else nothing."""
    found = list(_single(skeleton, settings, device))
    if found or settings.strategy == "cpu":
        return found
    for gpus in _more(settings):
        remedy = _try(
            skeleton, settings, device, strategy="fsdp2", offload=False, gpus=gpus, batch_size=1,
            gradient_checkpointing=True,
        )  # fmt: skip
        if remedy:
            return [remedy]
    return []


def _single(skeleton: Skeleton, settings: Settings, device: Device) -> Iterator[Remedy]:
    changes: list[dict[str, Any]] = []
    if size := largest_batch(skeleton, settings, device):
        changes.append({"batch_size": size})
    if not settings.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    if settings.gpus > 1:
        parts = {"tensor_parallel": 1} if settings.tensor_parallel > 1 else {}
        changes += [{"strategy": s, **(parts if s != "fsdp2" else {})} for s in SHARDED if s != settings.strategy]
    if settings.zero and not settings.offload:
        changes.append({"offload": True})
    yield from (remedy for change in changes if (remedy := _try(skeleton, settings, device, **change)))
    if settings.strategy != "cpu":
        sharded = {} if settings.strategy in SHARDED else {"strategy": "fsdp2"}
        more = (_try(skeleton, settings, device, gpus=gpus, **sharded) for gpus in _more(settings))
        yield from [remedy for remedy in [next(filter(None, more), None)] if remedy]


def _more(settings: Settings) -> Iterator[int]:
    gpus = 2 * settings.gpus
    while gpus <= MOST_GPUS:
        yield gpus
        gpus *= 2


def _changed(settings: Settings, **changes: Any) -> Settings | None:
    try:
        return replace(settings, **changes)
    except UserError:  # it does not go with the other options
        return None


def _try(skeleton: Skeleton, settings: Settings, device: Device, **changes: Any) -> Remedy | None:
    other = _changed(settings, **changes)
    if other is None:
        return None
    total = memory(skeleton, other).total
    return Remedy(changes, other, total) if total <= device.usable else None
