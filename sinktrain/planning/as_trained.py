"""What `SinkModule` finds out about a model by looking at its numbers, found out without any."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def without_masks(model: PreTrainedModel) -> None:
    """Lets it attend as `WithoutMasks` does in training, if its code takes that."""
    import torch

    from sinktrain.training.masks import unmasked_name

    before, without = model.config._attn_implementation, unmasked_name(model)
    if without is None:
        return
    model.config._attn_implementation = without
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)
    except (TypeError, AttributeError, RuntimeError):
        model.config._attn_implementation = before


def has_plain_head(model: PreTrainedModel) -> bool:
    """As `sinktrain.training.heads.has_plain_head`, without data: nothing but a product follows the hidden states."""
    import torch

    from sinktrain.planning.live import OperationNames

    ids = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad(), OperationNames() as inner:
        model.base_model(input_ids=ids, use_cache=False)
    with torch.no_grad(), OperationNames() as whole:
        model(input_ids=ids, use_cache=False)
    return whole.arithmetic - inner.arithmetic in ({"mm": 1}, {"addmm": 1}, {"bmm": 1})
