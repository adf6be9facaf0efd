"""Making a model stream: what is done around each of its forward calls, and undone after it.

No class of transformers is changed. Two hooks on the model look whether a forward carries a `SinkCache`; if not, they
do nothing. If so, the model's attention goes through `stream_attention` for that call, and all its tokens stand at
position 0: what positions do is done there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.streaming.attention import NAME, STREAM, stream_attention
from sinktrain.streaming.cache import SinkCache
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.own_attention import give_forward, own_attention_modules, unused_mask
from sinktrain.streaming.positions import Positions, no_streaming_form
from sinktrain.streaming.spec import CacheSpec, PositionRule

_ATTACHED = f"_sinktrain_attached_{id(SinkCache)}"


@dataclass
class Attachment:
    """What is known of a model that was made ready; it stands on the model, so that a copy has one of its own.

    Args:
        own: its attention modules that do not use transformers' interface.
        parameters: the names of its forward's parameters, in order.
        implementation: its own attention, while a forward uses that of the stream.
        before: the forwards that `own` were given by others, as a band does (`train`), while they have the stream's.
    """

    own: list[tuple[nn.Module, Callable[..., Any]]]
    parameters: list[str]
    implementation: str | None = None
    before: list[Any] = field(default_factory=list)


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Uses the registered attention function `name` inside the block, and the model's own after it."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attach(model: PreTrainedModel) -> None:
    """Makes `model` recognize a `SinkCache` in its forward calls; without one it is as it was.

    Raises:
        UserError: the model does not attend through transformers' interface, nor is it Bloom, MPT or Falcon.
    """
    if _ATTACHED in vars(model):
        return
    parameters = list(inspect.signature(model.forward).parameters)
    setattr(model, _ATTACHED, Attachment(own_attention_modules(model), parameters))
    hooks = (
        model.register_forward_pre_hook(_before, with_kwargs=True),
        model.register_forward_hook(_after, with_kwargs=True, always_call=True),
    )
    try:
        _check(model)
    except Exception:
        for hook in hooks:
            hook.remove()
        delattr(model, _ATTACHED)
        raise


@torch.no_grad()
def _check(model: PreTrainedModel) -> None:
    """Runs a few tokens and sees that each layer stored its keys in the cache, and that the logits are the model's."""
    ids = torch.linspace(0, int(model.config.get_text_config().vocab_size) - 1, 4, device=model.device).long()[None]
    cache = SinkCache(CacheSpec(0, 8), Positions.probe(model, longest=ids.shape[1]))
    try:
        found = model(input_ids=ids, past_key_values=cache).logits
    except UserError as error:
        raise no_streaming_form(model, str(error).rstrip(".")) from error
    if not all(isinstance(layer, SinkLayer) and layer.is_initialized for layer in cache.layers):
        raise no_streaming_form(model, "it does not use the attention interface of transformers")
    if found.dtype in (torch.float32, torch.float64) and not model.training:  # in others rounding may hide all else
        expected = model(input_ids=ids, use_cache=False).logits
        alike = bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())
        if not alike and bool(expected.isfinite().all()):
            raise no_streaming_form(model, "its attention does more than the interface of transformers says")


def _before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    attached: Attachment | None = getattr(module, _ATTACHED, None)
    if attached is None:
        return args, kwargs
    _restore(module, attached)  # a forward that was interrupted (Ctrl-C) did not come to its end
    if len(args) > 1:
        kwargs, args = {**dict(zip(attached.parameters[1:], args[1:], strict=False)), **kwargs}, args[:1]
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SinkCache):
        return args, kwargs
    if kwargs.get("use_cache") is False:  # generate would give the whole text at each step
        raise UserError("use_cache=False: a SinkCache is no use without it; pass use_cache=True.")
    ids = args[0] if args else kwargs.get("input_ids")
    tokens: Tensor = kwargs["inputs_embeds"] if ids is None else ids
    batch, length = tokens.shape[:2]
    cache.begin(batch, length, kwargs.pop("attention_mask", None), tokens.device)
    kwargs["use_cache"] = True
    if "position_ids" in attached.parameters:
        kwargs["position_ids"] = torch.zeros(1, length, dtype=torch.long, device=tokens.device)
    if attached.own:
        kwargs["attention_mask"] = unused_mask(module, batch, length)
        attached.before = [vars(part).get("forward") for part, _ in attached.own]
        for part, forward in attached.own:
            part.forward = functools.partial(forward, part, functools.partial(stream_attention, stream=cache))
    attached.implementation = module.config._attn_implementation
    module.config._attn_implementation = NAME
    # Every attention module has the config at hand; not every family hands keywords on to the attention function.
    setattr(module.config.get_text_config(), STREAM, cache)
    return args, kwargs


def _after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    attached: Attachment | None = getattr(module, _ATTACHED, None)
    if attached is None or attached.implementation is None:
        return
    _restore(module, attached)
    if output is not None:  # else the forward failed, and the cache says so when it is used again
        kwargs["past_key_values"].end()


def _restore(module: Any, attached: Attachment) -> None:
    """Gives the model its own attention back, if it has that of a stream."""
    if attached.implementation is None:
        return
    module.config._attn_implementation = attached.implementation
    attached.implementation = None
    delattr(module.config.get_text_config(), STREAM)
    for (part, _), before in zip(attached.own, attached.before, strict=True):
        give_forward(part, before)


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

    outer = vars(model).get("generate")
    vars(model)["generate"] = streaming
    try:
        yield model
    finally:
        del vars(model)["generate"]
        if outer is not None:  # of a block around this one
            vars(model)["generate"] = outer
