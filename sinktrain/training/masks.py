"""Which positions see each other while training, without a wait for the device.

transformers looks into the positions of every batch for documents that are packed, which makes the host wait, and under
`torch.compile` makes a mask as large as the scores. Here a sample that is one text goes without a mask, and the mask of
packed documents is made once a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sinktrain.sinks.add_outlet import NAME as SINKS
from sinktrain.sinks.attention import sink_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _plain(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Fused attention of transformers, by the kind of mask."""
    if not isinstance(mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    flex: Any = flex_attention_forward
    return flex(module, query.to(dtype), key.to(dtype), value.to(dtype), mask, **kwargs)


# transformers makes no mask for the names that its `AttentionMaskInterface` does not know.
_UNMASKED = {"sdpa": "sinktrain_unmasked_sdpa", SINKS: "sinktrain_unmasked"}
_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
AttentionInterface.register(_UNMASKED["sdpa"], _plain)
AttentionInterface.register(_UNMASKED[SINKS], sink_attention)


@torch.no_grad()
def unmasked_attention(model: PreTrainedModel) -> str | None:
    """The name of the attention of `model` under which transformers makes no masks, if that changes nothing.

    With it, samples are whole texts or come with a `document_mask`; padding would not be seen, so it is for training
    alone. It changes something where layers have windows, unless the attention is ours, which minds them itself.
    """
    before, without = model.config._attn_implementation, unmasked_name(model)
    if without is None:
        return None
    ids = torch.arange(4, device=model.device)[None]
    training = model.training
    model.eval()
    expected = model(input_ids=ids, use_cache=False).logits
    model.config._attn_implementation = without
    try:
        found = model(input_ids=ids, use_cache=False).logits
    except (TypeError, AttributeError, RuntimeError):  # it does something of its own with the mask, as Falcon does
        return None
    finally:
        model.config._attn_implementation = before
        model.train(training)
    same = torch.allclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True)
    return without if same else None


def unmasked_name(model: PreTrainedModel) -> str | None:
    """What `unmasked_attention` will try: it needs no weights, and one architecture or another will not have it."""
    before = model.config._attn_implementation
    if before not in _UNMASKED or (before == "sdpa" and _has_windows(model)) or _has_chunks(model):
        return None
    return _UNMASKED[before]


class WithoutMasks(L.Callback):
    """The attention of a `SinkModule` is its `unmasked` one during a fit, its own again after it and after a band."""

    def __init__(self) -> None:
        self._own: str | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begins."""
        if pl_module.unmasked is not None:
            self._own = pl_module.model.config._attn_implementation
            pl_module.model.config._attn_implementation = pl_module.unmasked

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Ends."""
        if self._own is not None:
            pl_module.model.config._attn_implementation, self._own = self._own, None
        if pl_module.banded is not None:
            pl_module.banded.end()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ends, since Lightning leaves `teardown` out."""
        self.teardown(trainer, pl_module, "fit")


def is_unmasked(model: PreTrainedModel) -> bool:
    """Whether `model` attends without masks of transformers now."""
    return model.config._attn_implementation in _UNMASKED.values()


def _has_windows(model: PreTrainedModel) -> bool:
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    return bool(window) or "sliding_attention" in (getattr(text, "layer_types", None) or ()) or _has_chunks(model)


def _has_chunks(model: PreTrainedModel) -> bool:
    """Whether a layer sees otherwise than causally or in a window (Llama 4), which a mask alone tells it."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    return bool(kinds - {"full_attention", "sliding_attention"}) or bool(getattr(text, "attention_chunk_size", None))


def document_mask(model: PreTrainedModel, position_ids: Tensor) -> Tensor | BlockMask:
    """Causal attention inside each of the documents that are packed in a row.

    Args:
        model: that is to attend.
        position_ids: (B, T); a document begins where they are 0.

    Returns:
        A mask for FlexAttention on CUDA, where the blocks between documents cost nothing; else (B, 1, T, T) bool.
    """
    documents = (position_ids == 0).cumsum(dim=1)
    batch, length = position_ids.shape
    if _fits_flex(model, position_ids.device):

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & (documents[b, i] == documents[b, j])

        return _block_mask()(seen, batch, None, length, length, device=str(position_ids.device))
    causal = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    return (documents[:, None, :, None] == documents[:, None, None, :]) & causal


def _fits_flex(model: PreTrainedModel, device: torch.device) -> bool:
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    dropped = any(getattr(text, name, 0.0) for name in _DROPOUT)
    plain = not (capped or dropped or text.model_type == "gpt2" or _has_windows(model))  # GPT-2 looks into its mask
    return device.type == "cuda" and width >= 16 and plain


@functools.cache
def _block_mask() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)
