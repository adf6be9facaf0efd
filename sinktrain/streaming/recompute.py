"""Recompute: for each token a fresh forward over [sinks +] the last C tokens. Slow, and the quality reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinktrain.streaming.nll import token_nll


@torch.no_grad()
def recompute_nll(
    model: PreTrainedModel,
    text: Tensor,
    targets: Sequence[int],
    size: int,
    *,
    sink_ids: Sequence[int] = (),
    batch: int = 8,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """The NLL of some tokens of a text, each from a window computed afresh (StreamingLLM, Figure 1c).

    The window that predicts token n is [sinks +] the `size` text tokens before it. With one sink that is as many
    tokens as a query sees with the cache 1+(size-1): the sink, size-1 cached ones and itself.

    Args:
        model: a causal language model in evaluation mode.
        text: (T,) token ids of the text, without the sink.
        targets: the indices of the tokens to predict, each >= `size`.
        size: C, how many text tokens a window holds.
        sink_ids: put in front of every window, since that is how a model with a sink was trained.
        batch: windows run at once.
        advance: called with the number of windows done after each batch.

    Returns:
        (len(targets),) natural-log NLL, float32 (float64 for a float64 model), on the CPU.

    Raises:
        ValueError: a target has fewer than `size` tokens before it, or lies outside the text.
    """
    if any(not size <= n < len(text) for n in targets):
        raise ValueError(f"targets must lie between size = {size} and the text's length {len(text)}")
    sinks = torch.tensor(list(sink_ids), dtype=torch.long)
    parts: list[Tensor] = []
    for begin in range(0, len(targets), batch):
        some = targets[begin : begin + batch]
        windows = torch.stack([torch.cat((sinks, text[n - size : n].long())) for n in some]).to(model.device)
        logits = model(input_ids=windows, use_cache=False, logits_to_keep=1).logits
        expected = torch.tensor([[int(text[n])] for n in some], device=model.device)
        parts.append(token_nll(logits, expected)[:, 0].cpu())
        if advance is not None:
            advance(len(some))
    return torch.cat(parts)
