"""The outlet of a softmax: one more key beside those of the text, for the attention that a head has to spare.

Each attention module knows its own: `sink_kind` says which it is, and the parameters hold what is learned.

- `zero`: a logit of 0, a value of zero; no parameters (softmax-off-by-one: StreamingLLM, arXiv 2309.17453, equation 2).
- `logit`: `sinks` (H,), a logit a head; a value of zero (gpt-oss, arXiv 2508.10925). Names as in transformers.
- `kv`: `sink_key` and `sink_value` (H_kv, D), or the key alone (Gu et al., arXiv 2410.10781). The key is not rotated:
  with rotary positions it is a key at position 0, like the first token of a text, and its logit depends on where the
  query stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def has_outlet(module: nn.Module) -> bool:
    """Whether the softmax of this attention module has an outlet of ours."""
    return getattr(module, "sink_kind", None) is not None


@contextmanager
def outlets_aside(model: Any) -> Iterator[None]:
    """Inside the block, a model of transformers whose attention has outlets of ours attends as if it had none."""
    before = model.config._attn_implementation
    if any(has_outlet(module) for module in model.modules()):
        model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def without_outlets(model: Any) -> Iterator[None]:
    """Inside the block, a model of transformers is what it was before it had outlets of ours, in streams too."""
    kinds = {module: module.sink_kind for module in model.modules() if has_outlet(module)}
    with outlets_aside(model):
        for module in kinds:
            module.sink_kind = None
        try:
            yield
        finally:
            for module, kind in kinds.items():
                module.sink_kind = kind


def outlet_logits(module: nn.Module, query: Tensor, scaling: float) -> Tensor | None:
    """The outlet's logit for each query.

    Args:
        module: the attention module.
        query: (B, H, L, D), rotated to where the queries stand.
        scaling: multiplies the product with a key.

    Returns:
        (B or 1, H or 1, L or 1), float32, or float64 for such queries; None for a softmax without an outlet.
    """
    kind = getattr(module, "sink_kind", None)
    if kind is None:
        return None
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    if kind == "zero":
        return torch.zeros(1, 1, 1, dtype=dtype, device=query.device)
    if kind == "logit":
        sinks: Tensor = module.sinks.to(dtype)  # type: ignore[assignment]
        return sinks[None, :, None]
    key: Tensor = module.sink_key.to(dtype)  # type: ignore[assignment]
    with torch.autocast(query.device.type, enabled=False):
        folded = query.to(dtype).unflatten(1, (len(key), -1))  # (B, H_kv, G, L, D)
        products: Tensor = folded @ key[:, None, :, None]
    return products.squeeze(-1).flatten(1, 2) * scaling


def outlet_value(module: nn.Module, heads: int) -> Tensor | None:
    """The outlet's value (H, D), each repeated for the heads that share a key head; None for zeros."""
    value: Tensor | None = getattr(module, "sink_value", None)
    return None if value is None else value.repeat_interleave(heads // len(value), dim=0)


def with_outlet(output: Tensor, lse: Tensor, logits: Tensor, value: Tensor | None) -> Tensor:
    """Adds the outlet to a softmax that is done.

    Args:
        output: (B, H, L, D_v) without the outlet.
        lse: (B, H, L) its log-sum-exp.
        logits: of the outlet, broadcastable to `lse`.
        value: (H, D_v) of the outlet; None for zeros.

    Returns:
        The output of the whole softmax, in the dtype of `output`.
    """
    rest = torch.sigmoid(lse - logits.to(lse.dtype))[..., None]  # exp(lse) / (exp(lse) + exp(logit))
    whole = output.to(lse.dtype) * rest
    if value is not None:
        whole = whole + torch.sigmoid(logits.to(lse.dtype) - lse)[..., None] * value.to(lse.dtype)[:, None]
    return whole.to(output.dtype)
