"""Streaming: what a model sees when its key-value cache keeps x sinks and the y most recent tokens.

`SinkCache` is the cache for `generate` and plain forward calls, `stream` a block in which a model streams. `stream_nll`
is the chunk-parallel evaluator, `reference_nll` the same thing token by token, `recompute_nll` the slow quality
reference. Nothing here needs lightning or datasets.
"""

from sinktrain.streaming.attach import stream
from sinktrain.streaming.cache import SinkCache
from sinktrain.streaming.nll import stream_nll
from sinktrain.streaming.positions import Positions
from sinktrain.streaming.recompute import recompute_nll
from sinktrain.streaming.reference import reference_nll
from sinktrain.streaming.spec import CacheSpec, PositionRule

__all__ = [
    "CacheSpec",
    "PositionRule",
    "Positions",
    "SinkCache",
    "recompute_nll",
    "reference_nll",
    "stream",
    "stream_nll",
]
