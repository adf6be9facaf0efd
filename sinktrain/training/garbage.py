"""Python's garbage collection, off the hot path."""

from __future__ import annotations

import gc
from typing import Any

import lightning as L

from sinktrain.base.errors import at_least


class GarbageCollection(L.Callback):
    """Collects garbage every so many optimizer steps, and at no other time.

    By itself Python collects when it has made enough objects: at another moment on every rank, and then all ranks wait
    for that one. Here all do it after the same step. What is alive when training starts (modules, weights, the loader)
    is never looked through again. After training, also after one that failed, all is as it was.

    Args:
        every_n_steps: optimizer steps between two collections; 0 leaves Python to itself.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        at_least("garbage.every_n_steps", every_n_steps, 0)
        self.every_n_steps = every_n_steps
        self._on = False
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes over, unless somebody else has switched collection off."""
        self._on = bool(self.every_n_steps) and gc.isenabled()
        self._step = trainer.global_step
        if self._on:
            gc.collect()
            gc.freeze()
            gc.disable()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Collects at the end of an optimizer step."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if self._on and stepped and self._step % self.every_n_steps == 0:
            gc.collect()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives Python its way back."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives Python its way back."""
        self._restore()

    def _restore(self) -> None:
        if self._on:
            gc.unfreeze()
            gc.enable()
        self._on = False
