"""A callback that looks at a model in the middle of its training from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch

from sinktrain.base.errors import at_least
from sinktrain.training.beside import beside_training
from sinktrain.training.throughput import wait_for


class Monitor(L.Callback):
    """Looks every so many optimizer steps, and once before the first.

    All ranks do the same, since a model may be spread over them.

    Args:
        name: in front of what is logged.
        every_n_steps: optimizer steps between two looks.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, name: str, every_n_steps: int) -> None:
        at_least(f"{type(self).__name__}.every_n_steps", every_n_steps, 1)
        self.name, self.every_n_steps = name, every_n_steps
        self._looked_at: int | None = None
        self._looked_until: float | None = None

    def look(self, trainer: L.Trainer, module: Any) -> Mapping[str, float]:
        """What is seen, by name; the host waits for the device."""
        raise NotImplementedError

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at a model that has not been trained yet."""
        self._looked_at, self._looked_until = trainer.global_step, None
        if trainer.global_step == 0:
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Looks at the end of an optimizer step."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._looked_at:
            self._looked_at = step
            self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, module: Any) -> None:
        wait_for(module.device)  # the training before it is no part of the cost
        start = self.clock()
        with beside_training(trainer, module):
            found = dict(module.looked_at(partial(self.look, trainer, module)))
        now = self.clock()
        if self._looked_until is not None:
            found["cost_share"] = (now - start) / (now - self._looked_until)
        self._looked_until = now
        figures = {f"{self.name}/{key}": value for key, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in figures.items()})
