"""Making a model stream: what is done around each of its forward calls, and undone after it.

No class of transformers is changed. Two hooks on the model look whether a forward carries a `SinkCache`; if not, they
do nothing. If so, the model's attention goes through `stream_attention` for that call, and all its tokens stand at
position 0: what positions do is done there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.streaming.attention import NAME, STREAM, stream_attention
from sinktrain.streaming.cache import SinkCache
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.own_attention import own_attention_modules, unused_mask
from sinktrain.streaming.positions import Positions, no_streaming_form
from sinktrain.streaming.spec import CacheSpec, PositionRule

_ATTACHED = "_sinktrain_attached"


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Uses the registered attention function `name` inside the block, and the model's own after it."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attach(model: PreTrainedModel, positions: Positions) -> None:
    """Makes `model` recognize a `SinkCache` in its forward calls; without one it is as it was.

    Args:
        model: a causal language model.
        positions: what `Positions.probe` found.

    Raises:
        UserError: the model does not attend through transformers' interface, nor is it Bloom, MPT or Falcon.
    """
    if _ATTACHED in vars(model):
        return
    own = own_attention_modules(model)
    # An attribute, so that a copy of the model has that of its own modules.
    setattr(model, _ATTACHED, (own, "position_ids" in inspect.signature(model.forward).parameters))
    model.register_forward_pre_hook(_before, with_kwargs=True)
    model.register_forward_hook(_after, with_kwargs=True, always_call=True)
    _check(model, positions)


@torch.no_grad()
def _check(model: PreTrainedModel, positions: Positions) -> None:
    """Runs one token and sees that each layer stored its key in the cache."""
    cache = SinkCache(CacheSpec(0, 1), positions)
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache)
    if not all(isinstance(layer, SinkLayer) and layer.is_initialized for layer in cache.layers):
        raise no_streaming_form(model, "it does not use the attention interface of transformers")


def _before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SinkCache):
        return args, kwargs
    if kwargs.get("use_cache") is False:  # generate would give the whole text at each step
        raise UserError("use_cache=False: a SinkCache is no use without it; pass use_cache=True.")
    own, takes_positions = getattr(module, _ATTACHED)
    ids = args[0] if args else kwargs.get("input_ids")
    tokens: Tensor = kwargs["inputs_embeds"] if ids is None else ids
    batch, length = tokens.shape[:2]
    cache.begin(batch, length, kwargs.pop("attention_mask", None), tokens.device)
    kwargs["use_cache"] = True
    if takes_positions:
        kwargs["position_ids"] = torch.zeros(1, length, dtype=torch.long, device=tokens.device)
    if own:
        kwargs["attention_mask"] = unused_mask(module, batch, length)
        for part, forward in own:
            part.forward = functools.partial(forward, part, functools.partial(stream_attention, stream=cache))
    cache.implementation = module.config._attn_implementation
    module.config._attn_implementation = NAME
    # Every attention module has the config at hand; not every family hands keywords on to the attention function.
    setattr(module.config.get_text_config(), STREAM, cache)
    return args, kwargs


def _after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SinkCache) or cache.implementation is None:
        return
    module.config._attn_implementation = cache.implementation
    cache.implementation = None
    delattr(module.config.get_text_config(), STREAM)
    for part, _ in getattr(module, _ATTACHED)[0]:
        vars(part).pop("forward", None)
    if output is not None:  # else the forward failed, and the cache says so when it is used again
        cache.end()


@contextmanager
def stream(model: PreTrainedModel, spec: CacheSpec | str, *, rule: PositionRule = "cache") -> Iterator[PreTrainedModel]:
    """Inside the block, `model.generate(...)` streams.

        with sinktrain.stream(model, "1+1023"):
            model.generate(**inputs, max_new_tokens=100_000)

    Each call without `past_key_values` is a new stream; its output's `past_key_values` is the `SinkCache` to go on
    with.

    Args:
        model: a causal language model.
        spec: the cache.
        rule: which distance the sinks are seen at.

    Yields:
        The model.

    Raises:
        UserError: the model has no streaming form, or `spec` is not a cache.
    """
    first = SinkCache.for_model(model, spec, rule=rule)
    generate: Any = model.generate

    def streaming(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is None:
            kwargs = {"use_cache": True, **kwargs, "past_key_values": SinkCache(first.spec, first.positions, rule=rule)}
        return generate(*args, **kwargs)

    vars(model)["generate"] = streaming
    try:
        yield model
    finally:
        del vars(model)["generate"]
