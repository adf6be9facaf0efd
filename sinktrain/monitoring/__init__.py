"""What one watches while a model trains: `SinkMonitor` and `StreamingProbe`, callbacks of a Lightning Trainer.

Both look at a fixed text from time to time, and leave the training as if they had not been there, to the bit. They need
lightning, which is imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinktrain.monitoring.sink_monitor import SinkMonitor
    from sinktrain.monitoring.streaming_probe import StreamingProbe

__all__ = ["SinkMonitor", "StreamingProbe"]

_HOMES = {"SinkMonitor": "sink_monitor", "StreamingProbe": "streaming_probe"}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
