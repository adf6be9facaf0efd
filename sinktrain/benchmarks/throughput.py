"""How fast a text is evaluated: our chunk-parallel evaluator against the plain forward that bounds it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinktrain.benchmarks.timing import in_turns, now, seconds_of
from sinktrain.streaming import CacheSpec, stream_nll
from sinktrain.streaming.nll import token_nll


def evaluation_seconds(
    model: PreTrainedModel, spec: CacheSpec, tokens: Tensor, *, chunk: int, seconds: float, rounds: int
) -> dict[str, dict[str, object]]:
    """Times both evaluations in turns, after one untimed turn of each.

    Args:
        model: a causal language model in evaluation mode.
        spec: the cache, x + y = C.
        tokens: (T,) token ids to take from; `tokens_needed(C, chunk)` of them at least.
        chunk: tokens a forward of `stream`; `dense` runs as many sequences of C tokens at once as fit into it.
        seconds: how long to go on.
        rounds: how many rounds to run at least.

    Returns:
        For `stream` (`stream_nll`, once its cache is full) and `dense` (a forward and the NLL over whole sequences of
        length C, nothing cached): `tokens` a turn, and the `seconds` of each turn.
    """
    assert spec.size is not None
    size, batch = spec.size, max(1, chunk // spec.size)
    text = tokens[: tokens_needed(size, chunk)]
    sequences = tokens[: batch * size + 1]
    first = _full_from(size, chunk)
    turns: dict[str, Callable[[], float]] = {
        "stream": lambda: _stream_seconds(model, text, spec, chunk, first),
        "dense": lambda: seconds_of(lambda: _dense(model, sequences, size), model.device),
    }
    in_turns(turns, seconds=0, rounds=1)  # warm
    found = in_turns(turns, seconds=seconds, rounds=rounds)
    counts = {"stream": len(text) - 1 - first, "dense": batch * size}
    return {name: {"tokens": counts[name], "seconds": found[name]} for name in turns}


def tokens_needed(size: int, chunk: int) -> int:
    """T, the tokens of a text that has max(C, chunk) of them, in whole chunks, predicted with a full cache."""
    return _full_from(size, chunk) + -(-max(size, chunk) // chunk) * chunk + 1


def _full_from(size: int, chunk: int) -> int:
    """The first whole chunk before which the cache is full: its position in the text."""
    return -(-size // chunk) * chunk


def _stream_seconds(model: PreTrainedModel, text: Tensor, spec: CacheSpec, chunk: int, first: int) -> float:
    """Seconds of `stream_nll` for what comes after the first `first` tokens, which fill the cache."""
    done, full = 0, 0.0

    def advance(count: int) -> None:
        nonlocal done, full
        done += count
        if done == first:
            full = now(model.device)

    stream_nll(model, text, spec, chunk=chunk, advance=advance)
    return now(model.device) - full


@torch.no_grad()
def _dense(model: PreTrainedModel, tokens: Tensor, size: int) -> Tensor:
    """The NLL of tokens 1 ... B·C, in sequences of C, on the CPU as `stream_nll` gives it."""
    tokens = tokens.to(model.device)
    inputs, targets = tokens[:-1].view(-1, size), tokens[1:].view(-1, size)
    return token_nll(model(input_ids=inputs, use_cache=False).logits, targets).cpu()
