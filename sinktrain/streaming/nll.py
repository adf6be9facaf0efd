"""The chunk-parallel evaluator: the NLL of every token of a text, as a streaming cache would have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.streaming.cache import SinkCache
from sinktrain.streaming.spec import CacheSpec, PositionRule


@torch.no_grad()
def stream_nll(
    model: PreTrainedModel,
    tokens: Tensor,
    cache: CacheSpec,
    *,
    rule: PositionRule = "cache",
    chunk: int = 512,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """The NLL of each token given what the cache holds when it is predicted.

    Exactly equal to `reference_nll`, for every `chunk`. Memory does not grow with the text (but for the `dense`
    cache, which keeps everything): a chunk's logits, and y keys and values a layer.

    Args:
        model: a causal language model, in evaluation mode.
        tokens: (T,) or (B, T) token ids; position 0 is the sink, or the text's first token for a model without one.
        cache: what is kept.
        rule: which distance the sinks are seen at.
        chunk: how many tokens are run at once.
        advance: called with the number of tokens done after each chunk.

    Returns:
        (T-1,) or (B, T-1) natural-log NLL of tokens 1 ... T-1, float32 (float64 for a float64 model), on the CPU.

    Raises:
        UserError: the model has no streaming form, or the text ends before the sinks do.
        ValueError: `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    if cache.sinks > tokens.shape[-1]:
        raise UserError(f"cache {cache}: keeps {cache.sinks} sinks of a text of {tokens.shape[-1]} tokens; keep fewer.")
    rows = tokens.reshape(-1, tokens.shape[-1])
    length = rows.shape[-1] - 1
    state = SinkCache.for_model(model, cache, rule=rule, longest=cache.longest(rule, length))
    # Made before the first chunk: small results that outlive their chunk would settle in the memory that its logits
    # leave, which then no longer has room for the next ones, and the process would grow by a chunk's logits each time.
    nll = torch.empty(len(rows), length, dtype=torch.float64 if model.dtype == torch.float64 else torch.float32)
    for begin in range(0, length, chunk):
        piece = rows[:, begin : min(begin + chunk, length) + 1].to(model.device, torch.long)
        size = piece.shape[1] - 1
        logits = model(input_ids=piece[:, :-1], past_key_values=state).logits
        nll[:, begin : begin + size] = token_nll(logits, piece[:, 1:])
        del logits
        if advance is not None:
            advance(size)
    return nll.reshape(*tokens.shape[:-1], length)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL (B, L) of targets (B, L) under logits (B, L, V), in at least float32; 16 rows at a time fit a CPU's cache."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    blocks = zip(logits.split(16, dim=1), targets.split(16, dim=1), strict=True)
    return torch.cat([_token_nll(x.to(dtype), y) for x, y in blocks], dim=1)


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    # Not F.cross_entropy, whose float32 sum on a CPU loses small terms: with 49,152 logits it is 5e-6 too low on
    # average, and 1e-4 over a dimension with strides. This is exact to 2e-6.
    return logits.logsumexp(dim=-1) - logits.gather(-1, targets[..., None])[..., 0]
