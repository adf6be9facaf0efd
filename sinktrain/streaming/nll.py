"""The chunk-parallel evaluator: the NLL of every token of a text, as a streaming cache would have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sinktrain.streaming.attention import NAME, StreamState
from sinktrain.streaming.rotary import Rotary, attention_implementation
from sinktrain.streaming.spec import CacheSpec, PositionRule


@torch.no_grad()
def stream_nll(
    model: PreTrainedModel,
    tokens: Tensor,
    cache: CacheSpec,
    *,
    rule: PositionRule = "cache",
    chunk: int = 512,
    rotary: Rotary | None = None,
    rebase_after: int = 8192,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """The NLL of each token given what the cache holds when it is predicted.

    Exactly equal to `reference_nll`, for every `chunk`. Memory does not grow with the text (but for the `dense`
    cache, which keeps everything): a chunk's logits, and y keys and values a layer.

    Args:
        model: a causal language model with rotary positions, in evaluation mode.
        tokens: (T,) or (B, T) token ids; position 0 is the sink, or the text's first token for a model without one.
        cache: what is kept.
        rule: which distance the sinks are seen at.
        chunk: how many tokens are run at once.
        rotary: how the model rotates, if it is known already from `Rotary.probe`.
        rebase_after: the base from which positions are counted moves when a chunk ends further from it.
        advance: called with the number of tokens done after each chunk.

    Returns:
        (T-1,) or (B, T-1) natural-log NLL of tokens 1 ... T-1, float32 (float64 for a float64 model), on the CPU.

    Raises:
        UserError: the model has no streaming form.
        ValueError: `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    rows = tokens.reshape(-1, tokens.shape[-1])
    length = rows.shape[-1] - 1
    state = StreamState(cache=cache, rotary=rotary or Rotary.probe(model), rule=rule, rebase_after=rebase_after)
    # Made before the first chunk: small results that outlive their chunk would settle in the memory that its logits
    # leave, which then no longer has room for the next ones, and the process would grow by a chunk's logits each time.
    nll = torch.empty(len(rows), length, dtype=torch.float64 if model.dtype == torch.float64 else torch.float32)
    with attention_implementation(model, NAME):
        for begin in range(0, length, chunk):
            piece = rows[:, begin : min(begin + chunk, length) + 1].to(model.device, torch.long)
            size = piece.shape[1] - 1
            positions = state.positions(size, model.device).expand(piece.shape[0], -1)
            logits = model(input_ids=piece[:, :-1], position_ids=positions, use_cache=False, stream=state).logits
            nll[:, begin : begin + size] = token_nll(logits, piece[:, 1:])
            del logits
            state.start += size
            if advance is not None:
                advance(size)
    return nll.reshape(*tokens.shape[:-1], length)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL (B, L) of targets (B, L) under logits (B, L, V), in at least float32, 128 positions at a time."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    blocks = zip(logits.split(128, dim=1), targets.split(128, dim=1), strict=True)
    return torch.cat([F.cross_entropy(x.transpose(1, 2).to(dtype), y, reduction="none") for x, y in blocks], dim=1)
