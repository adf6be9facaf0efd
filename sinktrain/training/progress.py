"""The progress bar."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

_SHOWN = {
    "train/loss": "loss",
    "speed/tokens_per_second": "tokens/s",
    "speed/mfu": "mfu",
    "speed/hours_left": "hours left",
}


class ProgressBar(RichProgressBar):
    """Rich's bar, with the loss, the speed and the time left as of the last log step.

    What is logged with `prog_bar=True` Lightning reads after every batch, and the host waits for the device each time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_at, self._figures = 0, dict[str, float]()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The figures at the right end of the bar."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._read_at and every and step % every == 0:
            found = trainer.callback_metrics
            self._read_at = step
            self._figures = {name: float(found[key]) for key, name in _SHOWN.items() if key in found}
        return {**super().get_metrics(trainer, pl_module), **self._figures}
