"""The attention that chosen positions get, in every head, without keeping the attention weights of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import outlet_logits, outlet_value, with_outlet
from sinktrain.streaming.train import band_aside

_NAME = "sinktrain_observer"
_ALIKE = 1e-2


def attention_columns(
    model: PreTrainedModel, ids: Tensor, positions: Sequence[int], *, check: bool = False, after: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The attention on some positions, and on the softmax's outlet, where it has one.

    Each layer attends once, in at least float32, and of its weights (B, H, T, T) only the sums are kept.

    Args:
        model: in evaluation mode.
        ids: (B, T) token ids without padding.
        positions: P of them.
        after: leave out so many queries from position k on: with 1, query k itself.
        check: run the model's own attention too, and see that its output is the same.

    Returns:
        alpha (B, layers, H, P): of each head, the mean over the queries i >= k + after of that from i to position k, as
        Gu et al. have it (arXiv 2410.10781, section 3.1); and (B, layers, H) the mean over all queries of that on the
        outlet, or None.

    Raises:
        UserError: the model does not attend through the interface of transformers, or not as this knows.
    """
    with band_aside(model):
        observer = _look(model, ids, positions, after, check)
    outlets = torch.stack(observer.outlets, dim=1) if observer.outlets else None
    return torch.stack(observer.columns, dim=1), outlets


def _look(model: PreTrainedModel, ids: Tensor, positions: Sequence[int], after: int, check: bool) -> _Observer:
    observer = _Observer(positions, after)
    base = model.base_model
    with observer.at_work(model):
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
    if not observer.columns:
        raise _not_seen(model)
    if check and hidden.dtype in (torch.float32, torch.float64):  # in others rounding may hide all else
        own = base(input_ids=ids, use_cache=False).last_hidden_state
        if bool(own.isfinite().all()) and not bool((hidden - own).abs().max() <= _ALIKE * own.abs().max()):
            raise _not_seen(model)
    return observer


def _not_seen(model: PreTrainedModel) -> UserError:
    return UserError(
        f"SinkMonitor: cannot see the attention of {model.config.model_type}, which does not go through the interface "
        "of transformers, or does more than it says; leave it out of trainer.callbacks, or evaluate --attention false."
    )


class _Observer:
    """An attention function that keeps sums."""

    def __init__(self, positions: Sequence[int], after: int) -> None:
        self.positions, self.after = positions, after
        self.columns: list[Tensor] = []
        self.outlets: list[Tensor] = []

    @contextmanager
    def at_work(self, model: PreTrainedModel) -> Iterator[None]:
        """The model attends through this inside the block."""
        before = model.config._attn_implementation
        AttentionInterface.register(_NAME, self.attend)  # without a mask function: no mask comes
        model.config._attn_implementation = _NAME
        try:
            yield
        finally:
            model.config._attn_implementation = before

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Causal attention of query (B, H, T, D) to key and value (B, H_kv, T, D); gives (B, T, H, D)."""
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        groups, length = query.shape[1] // key.shape[1], query.shape[2]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        with torch.autocast(query.device.type, enabled=False):
            q, k, v = query.to(dtype), _by_head(key.to(dtype), groups), _by_head(value.to(dtype), groups)
            scores = q @ k.transpose(-1, -2) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            places = torch.arange(length, device=query.device)
            distance = places[:, None] - places
            seen = distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)
            scores = scores.masked_fill(~seen, float("-inf"))
            lse = scores.logsumexp(dim=-1)
            weights = (scores - lse[..., None]).exp()
            output = weights @ v
            logits = outlet_logits(module, q, scale)
            if logits is None and s_aux is not None:
                logits = s_aux.to(dtype)[None, :, None]
            if logits is not None:
                output = with_outlet(output, lse, logits, outlet_value(module, q.shape[1]))
                weights = weights * torch.sigmoid(lse - logits)[..., None]
                self.outlets.append(torch.sigmoid(logits - lse).mean(dim=-1))
        self.columns.append(
            torch.stack([weights[:, :, p + self.after :, p].mean(dim=-1) for p in self.positions], dim=-1)
        )
        return output.to(query.dtype).transpose(1, 2).contiguous(), None


def _by_head(x: Tensor, groups: int) -> Tensor:
    """(B, H_kv, ...) to (B, H, ...): each key head for the queries that share it."""
    return x.repeat_interleave(groups, dim=1)
