"""The arithmetic behind MFU: what a token costs, and what a card can do at most."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEAKS = ((r"\bA100\b", 312e12), (r"\bH100 PCIe\b", 756e12), (r"\bH100 (\d+GB )?HBM3\b|\bH100 SXM|\bH200$", 989e12))
"""FLOP/s of dense bf16 by what a card calls itself (NVIDIA's data sheets; their larger figures are for sparse
matrices). Those that it leaves out, an H200 NVL or a part of a card (MIG) for example, have no peak here."""


def peak_flops(device: str) -> float | None:
    """FLOP/s of dense bf16 of a CUDA device by its name; None for one that is not known."""
    if "MIG" in device:
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device)), None)


def flops_per_token(model: PreTrainedModel, length: int) -> float:
    """FLOPs of training (forward and backward) per position: 6 N + 12 L d T (PaLM, arXiv 2204.02311, appendix B).

    N counts every parameter that a position is multiplied with: all but the tables that are only looked up. So an input
    embedding is left out, unless it is tied to the head and serves as that too. L is the number of layers, d the width
    of all heads together, T the positions of a sample: attention counts in full, though half of it is masked, as usual,
    and with packing `document` as if the row were one document. With a band, T is the keys that a query sees at
    most. Recomputed activations do not count, nor do frozen parameters count for less.

    Args:
        model: a causal language model of transformers.
        length: T.
    """
    config: Any = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 6.0 * _multiplied(model) + 12.0 * int(config.num_hidden_layers) * width * length


def _multiplied(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    used = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set[int]()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(weight) for weight in tables} - used
    # ZeRO-3 leaves empty parameters behind that know how large they were.
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters() if id(p) not in looked_up)
