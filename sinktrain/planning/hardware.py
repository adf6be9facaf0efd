"""The cards that a run is planned for, and what of their memory is left for it."""

from __future__ import annotations

import os
from dataclasses import dataclass

GIB = 2**30
HELD_BACK_GIB = 2.0
"""Assumed, not measured: the CUDA context, kernels and NCCL's buffers, which torch's allocator does not see."""
HELD_BACK_FRACTION = 0.05
"""Assumed, not measured: of the memory, for the gaps between the allocator's blocks."""


@dataclass(frozen=True)
class Device:
    """Where a process trains.

    Args:
        name: what the card calls itself, as `sinktrain.training.flops.PEAKS` knows it; None for a processor.
        gib: memory as `torch.cuda.mem_get_info` tells it, rounded down; below the number in the card's name.
    """

    name: str | None
    gib: float

    @property
    def usable(self) -> float:
        """Bytes that training may use."""
        return (self.gib * (1 - HELD_BACK_FRACTION) - HELD_BACK_GIB) * GIB


GPUS = {
    "a100-40": Device("NVIDIA A100-SXM4-40GB", 39.5),
    "a100-80": Device("NVIDIA A100-SXM4-80GB", 79.1),
    "h100": Device("NVIDIA H100 80GB HBM3", 79.1),
    "h200": Device("NVIDIA H200", 139.7),
}


def this_machine() -> Device:
    """The processor that this runs on, with all its memory."""
    return Device(None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB)
