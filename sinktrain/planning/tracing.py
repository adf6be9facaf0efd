"""A training step on fake tensors: any architecture runs its own code, and nothing is computed or held.

The step is that of `SinkModule` in Lightning: the forward pass and the loss, then the old gradients are dropped
(Lightning does so after the forward pass), the backward pass, the optimizer. Each number here is linear in the depth of
a model whose layers are alike, so that a shallow model tells of a deep one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError
from sinktrain.planning.as_trained import has_plain_head, without_masks
from sinktrain.planning.skeleton import Skeleton, layer_list, split_layers

if TYPE_CHECKING:
    import torch

SHALLOW = (2, 3)
"""Depths to trace: with two layers the first and the last are different ones."""


@dataclass(frozen=True)
class Work:
    """What decides a trace beside the model: dtypes by name, `kept` for gradients that a backward pass adds to."""

    batch_size: int
    sequence_length: int
    dtype: str
    autocast: bool
    checkpointing: bool
    optimizer: str
    kept: bool
    parts: int = 1


@dataclass(frozen=True)
class Traced:
    """Bytes beside parameters, optimizer state and the gradients of the step before.

    Args:
        saved: what autograd keeps for the backward pass.
        forward: the most that lives in the forward pass and the loss.
        backward: the most in the backward pass: until the last layer's gradients begin, during that layer, during the
            second, to the end. It counts new gradients as they come, unless `Work.kept`.
        step: the most in the optimizer.
    """

    saved: float
    forward: float
    backward: tuple[float, ...]
    step: float


@cache
def trace(skeleton: Skeleton, work: Work) -> Traced:
    """The step of the whole model."""
    if skeleton.layers <= SHALLOW[1] or not _alike(skeleton):
        return trace_depth(skeleton, work, skeleton.layers)
    few, more = (trace_depth(skeleton, work, depth) for depth in SHALLOW)

    def deep(a: float, b: float) -> float:
        return a + (skeleton.layers - SHALLOW[0]) * (b - a)

    backward = tuple(map(deep, few.backward, more.backward))
    return Traced(deep(few.saved, more.saved), deep(few.forward, more.forward), backward, deep(few.step, more.step))


def _alike(skeleton: Skeleton) -> bool:
    """Whether all layers have the same parameters and see in the same way."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layers = layer_list(skeleton.build(torch.float32))
    shapes = {tuple((name, p.shape) for name, p in layer.named_parameters()) for layer in layers}
    return len(shapes) == 1 and len(set(getattr(skeleton.config.get_text_config(), "layer_types", None) or ())) < 2


def trace_depth(skeleton: Skeleton, work: Work, depth: int) -> Traced:
    """The step of the first `depth` layers, none of them extrapolated.

    Raises:
        UserError: the architecture's code looks into its data, as routers of experts do.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _Step(skeleton, work, depth).run()
        except RuntimeError as error:  # DataDependentOutputException among them
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"--model {skeleton.name}: its code cannot run on tensors without data ({first[:200]}); plan for a "
                "dense model of the same size."
            ) from error


class _Step:
    """One optimizer step; to be made and run under a FakeTensorMode."""

    def __init__(self, skeleton: Skeleton, work: Work, depth: int) -> None:
        import torch

        from sinktrain.training.optimizer import OptimizerConfig, build_optimizer

        self.work, self.model = work, skeleton.build(getattr(torch, work.dtype), depth)
        split_layers(self.model, work.parts)
        if work.checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()
        self.ids = torch.zeros(work.batch_size, work.sequence_length, dtype=torch.int64)
        self.plain = has_plain_head(self.model)
        without_masks(self.model)
        config = OptimizerConfig(name=work.optimizer)  # type: ignore[arg-type]
        self.optimizer = build_optimizer(self.model, config)
        self.optimizer.skip = torch.zeros(())

    def run(self) -> Traced:
        import torch

        from sinktrain.planning.live import LiveBytes, SavedBytes

        parameters = list(self.model.parameters())
        if self.work.kept:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        old = [parameter.grad for parameter in parameters if parameter.grad is not None]
        live = LiveBytes([*parameters, *self.model.buffers(), *old, self.ids])
        saved = SavedBytes(parameters)
        with live:
            with saved, _autocast(self.work.autocast):
                objective = self._loss() / 1024
            kept, forward = saved.take(), live.peak
            live.peak = live.now
            with self._phases(live) as peaks:
                objective.backward()
            del objective
            self.optimizer.step()  # makes the state
            live.peak = before = live.now
            self.optimizer.step()
        return Traced(kept, forward, peaks(), live.peak - before)

    def _loss(self) -> torch.Tensor:
        """As `SinkModule.losses`."""
        from sinktrain.training.loss import logits_loss, next_token_loss

        inputs: dict[str, Any] = {"input_ids": self.ids, "use_cache": False}
        if not self.plain:
            return logits_loss(self.model(**inputs).logits, self.ids)[0]
        hidden = self.model.base_model(**inputs).last_hidden_state
        head: Any = self.model.get_output_embeddings()
        return next_token_loss(hidden, head, self.ids)[0]

    @contextmanager
    def _phases(self, live: Any) -> Iterator[Any]:
        """Yields a function that tells the peak of each part of the backward pass, from its end to its start."""
        layers = list(layer_list(self.model))
        peaks: dict[int, int] = {}
        at = [len(layers)]

        def enter(index: int) -> None:
            if index < at[0]:
                peaks[at[0]] = live.peak
                live.peak, at[0] = live.now, index

        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: enter(index))
            for index, layer in enumerate(layers)
            for parameter in layer.parameters()
        ]

        def read() -> tuple[float, ...]:
            if len(layers) <= SHALLOW[1]:
                return tuple(float(peaks.get(index, 0)) for index in (len(layers), len(layers) - 1, 1, 0))
            return (float(max(peaks.values())),)

        yield read
        peaks[at[0]] = live.peak
        for hook in hooks:
            hook.remove()


def _autocast(wanted: bool) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if wanted else nullcontext()
