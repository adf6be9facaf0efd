"""Training: the LightningModule, its optimizer and schedule, checkpoints, the verb `fit`.

`SinkModule` needs lightning, which is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinktrain.training.checkpoints import load_checkpoint
    from sinktrain.training.guards import GuardConfig
    from sinktrain.training.module import SinkModule
    from sinktrain.training.optimizer import OptimizerConfig
    from sinktrain.training.saving import Checkpoints
    from sinktrain.training.strategies import DDP, FSDP2, DeepSpeed
    from sinktrain.training.tuning import TuningConfig

__all__ = [
    "DDP",
    "FSDP2",
    "Checkpoints",
    "DeepSpeed",
    "GuardConfig",
    "OptimizerConfig",
    "SinkModule",
    "TuningConfig",
    "load_checkpoint",
]

_HOMES = {
    "SinkModule": "module",
    "GuardConfig": "guards",
    "OptimizerConfig": "optimizer",
    "load_checkpoint": "checkpoints",
    "Checkpoints": "saving",
    "DDP": "strategies",
    "FSDP2": "strategies",
    "DeepSpeed": "strategies",
    "TuningConfig": "tuning",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
