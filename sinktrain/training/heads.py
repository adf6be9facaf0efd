"""What a model does to its last hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its head applied to its last hidden states and nothing else.

    Some architectures scale or cap them (Cohere, Gemma 2, Granite). Their configs name that in as many ways, so two
    tokens are put through the model instead, with a head so large that a cap shows.
    """
    head: Any = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor):
        return False
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.arange(2, device=head.weight.device)[None]
        before = head.weight.detach().clone()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        head.weight.mul_(100 / F.linear(hidden, head.weight).abs().max().clamp(min=1e-6))
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # a tied embedding has grown too
        logits = model(input_ids=ids, use_cache=False).logits
        same = torch.allclose(F.linear(hidden, head.weight, getattr(head, "bias", None)), logits, rtol=1e-4, atol=1e-3)
        head.weight.copy_(before)
    model.train(was_training)
    return same
