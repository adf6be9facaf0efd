"""sinktrain: train language models that stream forever with one learnable sink token, and prove that they do.

    with sinktrain.stream(model, "1+1023"):
        model.generate(**inputs, max_new_tokens=100_000)

    model.generate(**inputs, past_key_values=sinktrain.SinkCache.for_model(model, "1+1023"))

Importing this package imports nothing heavy; each room is imported when it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`sinktrain.stream` and `sinktrain.SinkCache`, whose module imports torch and transformers."""
    if name in ("SinkCache", "stream"):
        return getattr(import_module("sinktrain.streaming"), name)
    raise AttributeError(f"module 'sinktrain' has no attribute {name!r}")
