"""The attention of a model, seen by blocks of queries, without keeping the weights of a layer.

Each layer attends once, in at least float32, in blocks of `ROWS` queries. Watchers are shown each block and keep sums,
so that a text of T positions needs no T x T scores of a head, as the fused kernels need none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import outlet_logits, outlet_value, with_outlet
from sinktrain.streaming.kernels import ROWS, fold, score_dtype
from sinktrain.streaming.train import band_aside
from sinktrain.streaming.watchers import Block, Columns, Watcher

Outlet = tuple[Tensor | None, Tensor | None]  # its logits, its value
_NAME = "sinktrain_observer"
_ALIKE = 1e-2
_ADVICE = {
    "SinkMonitor": "leave it out of trainer.callbacks, or evaluate --attention false",
    "model.name": "name another model",
}


def attention_columns(
    model: PreTrainedModel, ids: Tensor, positions: Sequence[int], *, check: bool = False, after: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The attention on some positions, and on the softmax's outlet, where it has one.

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
    columns = Columns(positions, after)
    observe(model, ids, columns, check=check)
    return columns.alpha, columns.outlet


def observe(
    model: PreTrainedModel,
    ids: Tensor,
    *watchers: Watcher,
    check: bool = False,
    rows: int = ROWS,
    option: str = "SinkMonitor",
) -> None:
    """Shows `watchers` the attention of a model, full and causal, over texts.

    Args:
        model: in evaluation mode.
        ids: (B, T) token ids without padding.
        *watchers: who looks.
        check: run the model's own attention too, and see that its output is the same.
        rows: queries a block.
        option: who asks, for the error message: `SinkMonitor` or `model.name`.

    Raises:
        UserError: the model does not attend through the interface of transformers, or not as this knows.
    """
    with band_aside(model):
        observer, base = _Observer(watchers, rows), model.base_model
        with observer.at_work(model):
            hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        if not observer.layers:
            raise _not_seen(model, option)
        if check and hidden.dtype in (torch.float32, torch.float64):  # in others rounding may hide all else
            own = base(input_ids=ids, use_cache=False).last_hidden_state
            if bool(own.isfinite().all()) and not bool((hidden - own).abs().max() <= _ALIKE * own.abs().max()):
                raise _not_seen(model, option)


def _not_seen(model: PreTrainedModel, option: str) -> UserError:
    return UserError(
        f"{option}: cannot see the attention of {model.config.model_type}, which does not go through the interface "
        f"of transformers, or does more than it says; {_ADVICE[option]}."
    )


class _Observer:
    """An attention function that shows what it does."""

    def __init__(self, watchers: Sequence[Watcher], rows: int) -> None:
        self.watchers, self.rows, self.layers = watchers, rows, 0

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
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        dtype, length = score_dtype(query), query.shape[2]
        outputs = []
        with torch.autocast(query.device.type, enabled=False):
            q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
            for watcher in self.watchers:
                watcher.layer(self.layers, k, v)
            for first in range(0, length, self.rows):
                end = min(first + self.rows, length)
                low = 0 if sliding_window is None else max(0, first - sliding_window + 1)
                part, keys = q[:, :, first:end], slice(low, end)
                own = outlet_logits(module, part, scale)
                if own is None and s_aux is not None:
                    own = s_aux.to(dtype)[None, :, None]
                outlet = own, outlet_value(module, q.shape[1])
                seen = _seen(first, low, end, sliding_window, query.device)
                found, output = _attended(part, k[:, :, keys], v[:, :, keys], seen, scale, softcap, outlet)
                for watcher in self.watchers:
                    watcher.block(Block(self.layers, first, low, length, *found))
                outputs.append(output)
        self.layers += 1
        return torch.cat(outputs, dim=2).to(query.dtype).transpose(1, 2).contiguous(), None


def _seen(first: int, low: int, end: int, window: int | None, device: torch.device) -> Tensor:
    """(R, N) which of the keys low ... end-1 the queries first ... end-1 see."""
    distance = torch.arange(first, end, device=device)[:, None] - torch.arange(low, end, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float, softcap: float | None, outlet: Outlet
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]:
    """The last four fields of a `Block`, and the output (B, H, R, D_v)."""
    shape = (*query.shape[:3], key.shape[2])
    logits = (fold(query, key.shape[1]) @ key.mT).view(shape) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~seen, float("-inf"))
    lse = logits.logsumexp(dim=-1)
    weights = (logits - lse[..., None]).exp()
    output = (fold(weights, key.shape[1]) @ value).view(*query.shape[:3], -1)
    own, own_value = outlet
    if own is None:
        return (logits, weights, None, None), output
    own = own.expand(lse.shape)
    weights = weights * torch.sigmoid(lse - own)[..., None]
    return (logits, weights, own, torch.sigmoid(own - lse)), with_outlet(output, lse, own, own_value)
