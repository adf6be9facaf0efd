"""The four ways to decode one token when C tokens came before it, made ready so that every timed token costs the same.

`streaming` is ours, with a cache that is full. `static` and `dense` are what stock transformers does with a
`StaticCache` and a `DynamicCache` that hold C tokens: after each token they go back to C, untimed, since with every
token kept they would slow down while they are timed. `recompute` runs a fresh forward over the last C tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from sinktrain.base.errors import UserError
from sinktrain.benchmarks.timing import seconds_of, working_bytes
from sinktrain.streaming import CacheSpec, SinkCache

METHODS = ("streaming", "static", "dense", "recompute")

FILL = 512
"""Tokens a forward while a cache is filled; nothing of it is timed."""


@dataclass(frozen=True)
class Decoder:
    """One way to decode.

    Args:
        method: its name, one of `METHODS`.
        step: decodes one token.
        rewind: makes the next step cost what this one did.
        cache: the key-value cache; None for `recompute`.
        device: of the model.
    """

    method: str
    step: Callable[[], object]
    rewind: Callable[[], None]
    cache: Cache | None
    device: torch.device

    @torch.no_grad()
    def turn(self, tokens: int) -> list[float]:
        """Decodes `tokens` tokens and returns the milliseconds of each."""
        found = []
        for _ in range(tokens):
            found.append(seconds_of(self.step, self.device) * 1000)
            self.rewind()
        return found

    def working_bytes(self) -> int:
        """The most memory that one token needs beside the weights and the cache."""
        return working_bytes(lambda: self.turn(1), self.device)

    @property
    def evicted(self) -> int:
        """How many tokens have left the cache so far; only a `SinkCache` loses any."""
        if not isinstance(self.cache, SinkCache) or self.cache.spec.size is None:
            return 0
        return max(0, int(self.cache.get_seq_length()) - self.cache.spec.size)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the tensors in which keys and values are kept."""
        layers: list[Any] = [] if self.cache is None else self.cache.layers
        kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values", "pristine")]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor is not None)


@torch.no_grad()
def make_decoder(method: str, model: PreTrainedModel, tokens: Tensor, spec: CacheSpec, *, compiled: bool) -> Decoder:
    """A decoder that has seen C tokens and is warm.

    Args:
        method: one of `METHODS`.
        model: a causal language model in evaluation mode.
        tokens: (1, C) token ids on the model's device.
        spec: x + y = C; only `streaming` evicts.
        compiled: compile the step of `streaming` and `static`.

    Raises:
        UserError: the model has no streaming form, or there is no compiler.
    """
    if method == "recompute":
        window = partial(model, input_ids=tokens, use_cache=False, logits_to_keep=1)
        return Decoder(method, window, lambda: None, None, model.device)
    size, token = tokens.shape[1], tokens[:, -1:]
    cache: Cache
    if method == "streaming":
        cache = SinkCache.for_model(model, spec)
        rewind: Callable[[], None] = lambda: None  # noqa: E731
    elif method == "static":
        cache = StaticCache(config=model.config, max_cache_len=size + 1)
        rewind = partial(_rewind_static, cache, size)
    else:
        cache = DynamicCache(config=model.config)
        rewind = partial(_rewind_dense, cache)
    for piece in tokens.split(FILL, dim=1):
        model(input_ids=piece, past_key_values=cache, logits_to_keep=1)
    forward = torch.compile(model, dynamic=False) if compiled and method != "dense" else model
    step = partial(forward, input_ids=token, past_key_values=cache, use_cache=True)
    # A first token outside the compiled step: from it the cache knows that it is full, and the step gets no branches.
    model(input_ids=token, past_key_values=cache)
    rewind()
    decoder = Decoder(method, step, rewind, cache, model.device)
    try:
        decoder.turn(3)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        raise UserError(
            "--compile true: torch.compile does not work here; install a C++ compiler such as g++, or leave it out."
        ) from error
    return decoder


def _rewind_static(cache: Cache, size: int) -> None:
    """Takes the last token back: the next one overwrites its row."""
    for layer in _growing(cache):
        layer.cumulative_length.fill_(size)


def _rewind_dense(cache: Cache) -> None:
    """Takes the last token back, at no cost: the next one copies keys and values as it would have done anyway."""
    for layer in _growing(cache):
        layer.crop(-1)


def _growing(cache: Cache) -> list[Any]:
    """The layers that keep every token; one with a sliding window of its own holds as much after a token as before."""
    layers: list[Any] = cache.layers
    return [layer for layer in layers if not layer.is_sliding]
