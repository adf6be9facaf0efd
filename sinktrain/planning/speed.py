"""Tokens a second, time and dollars, from a card's peak and an assumed fraction of it."""

from __future__ import annotations

from dataclasses import dataclass

from sinktrain.planning.hardware import Device
from sinktrain.planning.settings import Settings
from sinktrain.planning.skeleton import Skeleton


@dataclass(frozen=True)
class Speed:
    """What to expect; None where it is not known.

    Args:
        mfu: the assumed fraction of the peak.
        flops_per_token: of training, as `sinktrain.training.flops` counts.
        tokens_per_second: of all GPUs.
        tokens: to train on.
        hours: for them.
        price: dollars for an hour of a GPU.
        dollars: for all.
    """

    mfu: float
    flops_per_token: float
    tokens_per_second: float | None
    tokens: float | None
    hours: float | None
    price: float | None
    dollars: float | None


def expect(
    skeleton: Skeleton, settings: Settings, device: Device, mfu: float, price: float | None, tokens: float | None
) -> Speed:
    """The speed at `mfu`; the peak is known for bf16 alone."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sinktrain.training.flops import flops_per_token, peak_flops

    with FakeTensorMode():
        flops = flops_per_token(skeleton.build(torch.float32), settings.sequence_length)
    peak = peak_flops(device.name) if device.name and settings.precision != "32-true" else None
    speed = None if peak is None else settings.gpus * peak * mfu / flops
    hours = None if speed is None or tokens is None else tokens / speed / 3600
    dollars = None if hours is None or price is None else hours * settings.gpus * price
    return Speed(mfu, flops, speed, tokens, hours, price, dollars)
