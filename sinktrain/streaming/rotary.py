"""Turning queries and keys from one position to another (RoPE, arXiv 2104.09864, equation 34).

A rotation composes: what was rotated at position p and is turned by d is what the model would have made at p + d.
Angles are taken in float64, since float32 angles are wrong beyond about 2^20 positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError


@dataclass(frozen=True)
class Rotary:
    """How a model rotates its heads, found by asking the model (`probe`), not from a list of architectures.

    Args:
        frequencies: (R/2,) float64, radians a position, for the first R of the D dimensions of a head.
        interleaved: pairs are dimensions (2m, 2m+1); otherwise (m, m + R/2), the usual layout of transformers.
        layers: for each layer, whether it rotates at all (some models have layers without positions).
    """

    frequencies: Tensor
    interleaved: bool
    layers: tuple[bool, ...]

    def turn(self, x: Tensor, distance: Tensor) -> Tensor:
        """Turns x (..., L, D) by `distance` (L,) positions; computes and returns at least float32."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        angles = distance.double()[:, None] * self.frequencies  # (L, R/2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        width = 2 * self.frequencies.numel()
        rotated, rest = x[..., :width], x[..., width:]
        if self.interleaved:
            even, odd = rotated[..., 0::2], rotated[..., 1::2]
            turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
        else:
            left, right = rotated.chunk(2, dim=-1)
            turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned

    @classmethod
    def probe(cls, model: PreTrainedModel) -> Rotary:
        """Finds out how `model` rotates, and proves it in every layer.

        A single token attends to itself alone, so its hidden states do not depend on its position: its keys at
        position 0 and at position p must differ by the rotation, in every layer. A model for which they do not
        (learned absolute positions, ALiBi, a frequency of its own in some layers) is refused.

        Raises:
            UserError: the model has no streaming form here.
        """
        keys = {position: _keys_at(model, position) for position in (0, *_PROBED)}
        frequencies = _frequencies(model)
        for interleaved in (False, True):
            rotary = cls(frequencies, interleaved, tuple(True for _ in keys[0]))
            layers = [rotary._explains(keys, layer) for layer in range(len(keys[0]))]
            if None not in layers and any(layers):
                return cls(frequencies, interleaved, tuple(bool(layer) for layer in layers))
        raise _no_streaming_form(model, "its keys do not follow one rotation by position in every layer")

    def _explains(self, keys: dict[int, list[Tensor]], layer: int) -> bool | None:
        """True when the layer rotates as described, False when it has no positions, None when it does neither."""
        start = keys[0][layer]
        scale = start.abs().max()
        tolerance = (3e-2 if start.dtype in (torch.bfloat16, torch.float16) else 1e-4) * scale
        rotates = still = True
        for position in _PROBED:
            found = keys[position][layer].float()
            turned = self.turn(start, torch.tensor([position], device=start.device))
            rotates &= bool((turned - found).abs().max() <= tolerance)
            still &= bool((start.float() - found).abs().max() <= tolerance)
        return False if still else (True if rotates else None)


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Uses the registered attention function `name` inside the block, and the model's own after it."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


_PROBED = (3, 7)
"""Positions at which keys are compared with those at 0: small, so that the float32 angles of the model are exact."""


def _probe_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention over one token: its own value. Records the key."""
    kwargs["probed_keys"].append(key.detach())
    groups = query.shape[1] // value.shape[1]
    return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous(), None


AttentionInterface.register("sinktrain_probe", _probe_attention)


@torch.no_grad()
def _keys_at(model: PreTrainedModel, position: int) -> list[Tensor]:
    """The keys (8, H, 1, D) of every layer for eight single-token texts whose token stands at `position`."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.linspace(0, vocabulary - 1, 8, device=model.device).long()[:, None]
    keys: list[Tensor] = []
    try:
        with attention_implementation(model, "sinktrain_probe"):
            model(input_ids=ids, position_ids=torch.full_like(ids, position), use_cache=False, probed_keys=keys)
    except (TypeError, ValueError, KeyError) as error:
        raise _no_streaming_form(model, "it takes no position ids or no attention function of ours") from error
    if not keys:
        raise _no_streaming_form(model, "it does not use the attention interface of transformers")
    return keys


def _frequencies(model: PreTrainedModel) -> Tensor:
    if any(getattr(module, "rope_type", "") in ("dynamic", "longrope") for module in model.modules()):
        raise _no_streaming_form(model, "its rotary frequencies change with the length of the text")
    buffers = [buffer for name, buffer in model.named_buffers() if name.split(".")[-1] == "inv_freq"]
    if not buffers:
        raise _no_streaming_form(model, "it has no rotary embedding of the usual form (one `inv_freq`)")
    found = [buffer.detach().double() for buffer in buffers]
    if any(other.shape != found[0].shape or not torch.equal(other, found[0]) for other in found[1:]):
        raise _no_streaming_form(model, "its layers rotate by several frequencies")
    return found[0]


def _no_streaming_form(model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"model.name {model.config.name_or_path or model.config.model_type}: {type(model).__name__} cannot stream here "
        f"since {why}; use a model with rotary positions (Llama, Mistral, Qwen, GPT-NeoX ...)."
    )
