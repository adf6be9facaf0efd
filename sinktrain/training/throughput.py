"""Speed while training: tokens a second, MFU, memory, the wait for data, the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.training.flops import flops_per_token, peak_flops
from sinktrain.training.stopwatch import Stopwatch

_FETCH, _SAVE = "[_TrainingEpochLoop].train_dataloader_next", "save_checkpoint"  # Lightning's names for its profiler


class Throughput(L.Callback):
    """Logs the speed of training, every trainer.log_every_n_steps.

    - `speed/tokens_per_second`: positions that the model computes (all of `input_ids`, sinks and padding too), over all
      ranks. The time is without validation, checkpoints and what the monitors measure.
    - `speed/mfu`: that times the FLOPs of a position over the peak of all devices; see `flops_per_token`. Left out
      where the peak is not known.
    - `speed/data_wait`: the share of the time in which the loop stood still for the loader; the mean of the ranks.
    - `speed/memory_gib`: the most memory in GiB that was allocated so far on a GPU (without one: that the process
      held); of the rank with the most.
    - `speed/hours_left`: until trainer.max_steps, at the pace since the first log step, validation and all included.

    A GPU works behind the host's back, so a time is true only where the host has waited for it. This is done once per
    log step, by reading one small tensor, which brings the ranks' figures too, and once before each pause. Between two
    log steps nothing waits. (Lightning's ThroughputMonitor waits in every batch.)

    Args:
        peak_flops: FLOP/s of one device at its best, for MFU; known for A100, H100 and H200, dense bf16.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise UserError(f"throughput.peak_flops {peak_flops}: must be above 0; an H100 does 989e12.")
        self.peak_flops = peak_flops
        self.tokens_per_second: float | None = None
        """Of the whole run, but for the steps until the first log step, which pay for compilation."""
        self._watch: Stopwatch | None = None
        self._undo: Callable[[], None] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the watch."""
        self._device = pl_module.device
        self._watch = Stopwatch(self.clock)
        self._step, self._origin = trainer.global_step, (trainer.global_step, self.clock())
        self._tokens, self._flops, self._laps, self._sums = 0, 0.0, 0, (0.0, 0.0)
        peak = self.peak_flops
        if peak is None and self._device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(self._device))
        self._peak = None if peak is None else peak * trainer.world_size
        self._listen(trainer.profiler)  # type: ignore[attr-defined]

    def _listen(self, profiler: Any) -> None:
        """Hears what Lightning tells its profiler: when it fetches a batch, when it saves."""
        start, stop = profiler.start, profiler.stop

        def on_start(name: str) -> None:
            start(name)
            if name == _FETCH and self._watch:
                self._watch.ask()
            elif name == _SAVE:
                self.pause()

        def on_stop(name: str) -> None:
            if name == _FETCH and self._watch:
                self._watch.get()
            elif name == _SAVE:
                self.resume()
            stop(name)

        def undo() -> None:
            del profiler.start, profiler.stop

        profiler.start, profiler.stop, self._undo = on_start, on_stop, undo

    def pause(self) -> None:
        """What follows is not training."""
        if self._watch:
            wait_for(self._device)
            self._watch.pause()

    def resume(self) -> None:
        """Training goes on."""
        if self._watch:
            self._watch.resume()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pauses."""
        self.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on."""
        self.resume()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Counts, and logs after every so many optimizer steps."""
        ids = batch["input_ids"]
        self._tokens += ids.numel()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step == self._step:
            return  # in the middle of an optimizer step
        self._step = trainer.global_step
        if every and self._step % every == 0:
            if not self._flops:
                banded = getattr(pl_module, "banded", None)
                length = ids.shape[1] if banded is None else banded.visible(ids.shape[1])
                self._flops = flops_per_token(pl_module.model, length)  # type: ignore[arg-type]
            for name, value in self._lap(trainer).items():
                pl_module.log(f"speed/{name}", value)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the last steps, for the speed of the whole run."""
        if self._tokens:
            self._lap(trainer)
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leaves the profiler as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._undo:
            self._undo()
        self._watch = self._undo = None

    def _lap(self, trainer: L.Trainer) -> dict[str, float]:
        """The figures since the last lap; here all ranks meet, and the host waits for the device."""
        assert self._watch is not None
        own = [float(self._tokens), self._watch.waited, _peak_memory(self._device)]
        ranks = _gather(trainer, torch.tensor(own, dtype=torch.float32, device=self._device))
        seconds = self._watch.lap()  # after the wait
        tokens, waited, memory = zip(*ranks, strict=True)
        self._tokens = 0
        share = getattr(trainer, "distributed_sampler_kwargs", None)
        # Ranks of a tensor-parallel group compute parts of the same positions.
        groups = len(ranks) if share is None else share["num_replicas"]
        positions = sum(tokens) * groups / len(ranks)
        speed = positions / seconds
        found = {"tokens_per_second": speed}
        if self._peak is not None:
            found["mfu"] = speed * self._flops / self._peak
        found |= {"data_wait": sum(waited) / len(ranks) / seconds, "memory_gib": max(memory) / 2**30}
        self._add_up(positions, seconds)
        return found | self._time_left(trainer)

    def _add_up(self, tokens: float, seconds: float) -> None:
        if self._laps == 1:
            self._sums = (0.0, 0.0)
        self._sums = (self._sums[0] + tokens, self._sums[1] + seconds)
        self._laps += 1
        self.tokens_per_second = self._sums[0] / self._sums[1]

    def _time_left(self, trainer: L.Trainer) -> dict[str, float]:
        if trainer.max_steps < 0:
            return {}
        step, begun = self._origin
        now = self.clock()
        pace = (now - begun) / max(1, trainer.global_step - step)
        if self._laps == 1:  # the steps until here pay for compilation
            self._origin = (trainer.global_step, now)
        return {"hours_left": pace * (trainer.max_steps - trainer.global_step) / 3600}


@contextmanager
def not_training(trainer: L.Trainer) -> Iterator[None]:
    """What is done inside the block is no part of the time that `Throughput` reports."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    with ExitStack() as stack:
        for callback in callbacks:
            if isinstance(callback, Throughput):
                callback.pause()
                stack.callback(callback.resume)
        yield


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type != "cpu":
        torch.zeros((), device=device).item()


def _gather(trainer: L.Trainer, figures: Tensor) -> list[list[float]]:
    """The figures (n,) of all ranks; waits for the device."""
    everyone = trainer.strategy.all_gather(figures) if trainer.world_size > 1 else figures
    gathered: list[list[float]] = everyone.reshape(-1, len(figures)).tolist()
    return gathered


def _peak_memory(device: torch.device) -> float:
    """Bytes: the most that was allocated on a CUDA device, or held by this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)  # bytes there, KiB elsewhere
