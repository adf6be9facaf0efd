"""Text in, samples out: sources, tokenizing, prepared folders, the order of samples, the LightningDataModule."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "HubStream": "streamed_text",
    "PreparedText": "prepared",
    "SinkDataModule": "datamodule",
    "documents": "sources",
    "train_bpe": "tokenizers",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and only then: `prepare` needs no Lightning and a sampler no `datasets`."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
