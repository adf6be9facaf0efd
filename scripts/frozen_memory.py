"""What `sink_only` should need: the arithmetic that `measure_memory.py` compares a run with.

Every weight is frozen, and the sinks' rows are a parameter of their own. So a byte of a gradient or of the optimizer
there is for each number of those rows only, and autograd keeps what the gradient of the hidden states needs (the
inputs of products are not among that: they are for gradients of weights). What lives in a step is counted on tensors
without data, as `sinktrain plan` does.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from sinktrain.planning.memory import Memory
from sinktrain.planning.skeleton import Skeleton

WIDTHS = {"32-true": 4, "bf16-mixed": 4, "bf16-true": 2}
"""Bytes of a frozen number by precision."""
ROW = (4, 4, 8)
"""Bytes of a number of the sink's row: itself, its gradient, two moments; all float32, with AdamW."""


def frozen_memory(skeleton: Skeleton, samples: int, length: int, precision: str, checkpointing: bool) -> Memory:
    """The bytes of a run of `sink_only` with one sink, by the same parts as a plan's."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model: Any = skeleton.build(torch.bfloat16 if precision == "bf16-true" else torch.float32)
        model.requires_grad_(False)
        frozen, width = sum(p.numel() for p in model.parameters()), model.get_input_embeddings().weight.shape[1]
        saved, peak = _step(model, samples, length, precision == "bf16-mixed", checkpointing)
    what = {
        "parameters": "every weight, frozen, and the row",
        "gradients": "of the row",
        "optimizer": "two moments of the row, and a step count",
        "activations": "what the gradient of the hidden states needs",
        "working": "a chunk of logits, a layer's backward pass",
    }
    row, gradient, moments = (size * width for size in ROW)
    return Memory(frozen * WIDTHS[precision] + row, gradient, moments + 4, saved, peak - saved, what)


def _step(model: Any, samples: int, length: int, autocast: bool, checkpointing: bool) -> tuple[int, int]:
    """Bytes that autograd keeps, and the most that lives in a forward and a backward pass beside the weights."""
    import torch
    from torch import nn

    from sinktrain.planning.as_trained import without_masks
    from sinktrain.planning.live import LiveBytes, SavedBytes
    from sinktrain.training.loss import next_token_loss

    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    without_masks(model)
    embedding = model.get_input_embeddings()
    row = nn.Parameter(torch.zeros(1, 1, embedding.weight.shape[1]))
    ids = torch.zeros(samples, length, dtype=torch.int64)
    weights = [*model.parameters(), row]
    live, saved = LiveBytes([*weights, *model.buffers(), ids]), SavedBytes(weights)
    with live:
        with saved, torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            text = embedding(ids[:, 1:])
            states = torch.cat((row.expand(samples, -1, -1).to(text.dtype), text), dim=1)
            hidden = model.base_model(inputs_embeds=states, use_cache=False).last_hidden_state
            del text, states
            objective = next_token_loss(hidden, model.get_output_embeddings(), ids)[0]
            del hidden
        kept = saved.take()
        objective.backward()
    return kept, live.peak
