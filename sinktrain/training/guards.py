"""Steps that must not reach the weights: non-finite ones, and spikes of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinktrain.base.errors import UserError, at_least

REASONS = ("", "a non-finite loss", "a non-finite gradient", "a loss spike")
"""What the numbers of `StepGuard.judge` mean."""


@dataclass(frozen=True)
class GuardConfig:
    """Which optimizer steps are left out, and when to stop.

    A step with a non-finite loss or gradient is always left out: weights, moments and step counts stay as they are,
    while the schedule goes on.

    Args:
        stop_after: how many steps left out in a row end the run. It is looked at every trainer.log_every_n_steps.
        spike_sigma: leave out a step as well whose loss or gradient norm is above the mean of the steps before it by
            more than this many standard deviations; OLMo-core uses 6. None leaves spikes alone.
        spike_window: over how many steps mean and deviation go; OLMo-core uses 128.
    """

    stop_after: int = 5
    spike_sigma: float | None = None
    spike_window: int = 128

    def __post_init__(self) -> None:
        at_least("guard.stop_after", self.stop_after, 1)
        at_least("guard.spike_window", self.spike_window, 20)
        if self.spike_sigma is not None and self.spike_sigma <= 0:
            raise UserError(f"guard.spike_sigma {self.spike_sigma}: must be above 0; 6 is usual.")


class Spikes:
    """Finds losses and gradient norms far above those of the steps before, without the host looking at them.

    As OLMo-core's `SkipStepOptimizer` (src/olmo_core/optim/skip_step_optimizer.py): a value is a spike when it is more
    than `sigma` sample standard deviations from the mean of up to `window` values before it, of which there must be
    half a window and at least 20; a spike enters the window too, so that a new level is accepted after a while: with 6
    and 128, after 4 steps. Unlike there, a value far below the mean is welcome, and a non-finite one never enters.
    """

    def __init__(self, sigma: float, window: int, device: torch.device) -> None:
        self.sigma, self.least = sigma, max(20, window // 2)
        self.values = torch.zeros(2, window, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(window, device=device)

    def add(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether this step is a spike (a scalar bool); it then belongs to the past."""
        new = torch.stack((loss, norm)).float()
        held = self._places < self.seen
        count = held.sum()
        mean = (self.values * held).sum(dim=1) / count.clamp(min=1)
        squares = ((self.values - mean[:, None]).square() * held).sum(dim=1)
        deviation = (squares / (count - 1).clamp(min=1)).sqrt()
        spike = (new > mean + self.sigma * deviation).any() & (count >= self.least)
        finite = new.isfinite().all()
        here = (self._places == self.seen % len(self._places)) & finite
        self.values = torch.where(here, new[:, None], self.values)
        self.seen = self.seen + finite
        return spike & finite


class StepGuard:
    """Judges every optimizer step on the device; the host learns of it when it asks.

    Every rank judges the same reduced loss and gradient norm, so all come to the same verdict without talking.
    """

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        self.config = config
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.spikes = None if config.spike_sigma is None else Spikes(config.spike_sigma, config.spike_window, device)
        self._in_a_row: list[str] = []  # the steps left out since the last good one, in words
        self._unread: list[tuple[int, Tensor, list[Tensor]]] = []
        self._samples: list[Tensor] = []

    def watch(self, samples: Tensor | None) -> None:
        """Remembers the numbers (B,) of the samples of a micro-batch of the coming step."""
        if samples is not None:
            self._samples.append(samples)

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """1. where the step must be left out and 0. elsewhere, a scalar on the device.

        Args:
            step: its number, for messages.
            loss: of the global batch, the same on all ranks.
            norm: of the global batch's gradient, before clipping, the same on all ranks.
        """
        finite_loss, finite_norm = loss.isfinite(), norm.isfinite()
        # Numbers times verdicts: `torch.where` would copy the numbers to the device, and wait for it.
        reason = ~finite_loss * 1 + (finite_loss & ~finite_norm) * 2
        if self.spikes is not None:
            reason = reason + self.spikes.add(loss, norm) * 3
        self.skipped = self.skipped + (reason > 0)
        self._unread.append((step, reason, self._samples))
        self._samples = []
        return (reason > 0).float()

    def read(self, gather: Callable[[Tensor], Tensor] = lambda samples: samples) -> list[str]:
        """The steps left out since the last reading, in words; here the host waits for the device.

        Args:
            gather: collects the sample numbers of all ranks; all ranks call it together.

        Raises:
            UserError: `stop_after` steps in a row were left out.
        """
        found = []
        reasons = torch.stack([reason for _, reason, _ in self._unread]).tolist() if self._unread else []
        unread, self._unread = self._unread, []
        for (step, _, samples), reason in zip(unread, reasons, strict=True):
            if reason == 0:
                self._in_a_row = []
                continue
            numbers = _ranges(gather(torch.cat(samples)).flatten().tolist()) if samples else "unknown"
            found.append(f"step {step} ({REASONS[reason]}, samples {numbers})")
            self._in_a_row.append(found[-1])
            if len(self._in_a_row) >= self.config.stop_after:
                raise UserError(
                    f"model.guard.stop_after {self.config.stop_after}: stopped, so many steps in a row were left out: "
                    f"{'; '.join(self._in_a_row)}; look at these samples, lower model.optimizer.learning_rate, or give "
                    "more."
                )
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        spikes = {} if self.spikes is None else {"values": self.spikes.values, "seen": self.spikes.seen}
        return {"skipped": self.skipped, "in_a_row": list(self._in_a_row), **spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint; a window of another length starts anew."""
        self.skipped = state["skipped"].to(self.skipped.device)
        self._in_a_row = list(state.get("in_a_row", []))
        if self.spikes is not None and "values" in state and state["values"].shape == self.spikes.values.shape:
            self.spikes.values = state["values"].to(self.spikes.values.device)
            self.spikes.seen = state["seen"].to(self.spikes.seen.device)


def _ranges(numbers: list[int]) -> str:
    """Numbers in order, runs of them as `first-last`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
