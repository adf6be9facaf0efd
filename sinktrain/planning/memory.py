"""The memory of a process, part by part. All sizes are bytes; nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sinktrain.planning.settings import Settings
from sinktrain.planning.skeleton import Skeleton, layer_list, split_layers
from sinktrain.planning.tracing import Traced, Work, trace

BUCKET = 200_000_000
"""Elements of a bucket of gradients that ZeRO reduces at once: Lightning's default of `reduce_bucket_size`."""
LIVE = 1_050_000_000
"""Elements that ZeRO-3 holds gathered: `stage3_max_live_parameters` and `stage3_prefetch_bucket_size` of DeepSpeed."""
GATHERED_LAYERS = 3
"""Of FSDP2 at a time: the one in use, the next one's buffer on the way, and the copy out of the last buffer."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a process at the worst moment of a step, each with a word on what it is.

    Args:
        parameters: what it holds of them between steps.
        gradients: the same.
        optimizer: moments, and float32 masters where the parameters are not.
        activations: what autograd keeps for the backward pass.
        working: all else that lives at that moment.
        notes: by the names above, what each is.
        moved: bytes of this process that were moved to the host.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    notes: dict[str, str]
    moved: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.working


@dataclass(frozen=True)
class Sizes:
    """Elements of the model.

    Args:
        all: of the whole model.
        shard: of a process, where the parameters are spread over all.
        moments: of the optimizer's state for the whole model; `moments_shard` for a shard of it.
        layer: of the largest layer as a process computes it.
        rest: of all that is no layer: embedding, head, last norm.
        steps: how many parameters have a step count of their own.
    """

    all: int
    shard: float
    moments: int
    moments_shard: float
    layer: int
    rest: int
    steps: int


@cache
def sizes(skeleton: Skeleton, optimizer: str, gpus: int, parts: int) -> Sizes:
    """Counts the elements of the model that would be trained.

    Args:
        skeleton: the model.
        optimizer: its name.
        gpus: processes that parameters are spread over.
        parts: of them share a layer's matrices (tensor parallel).
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sinktrain.training.optimizer import OptimizerConfig, build_optimizer

    with FakeTensorMode():
        model = skeleton.build(torch.float32)
        whole = sum(p.numel() for p in model.parameters())
        split = split_layers(model, parts)
        groups = build_optimizer(model, OptimizerConfig(name=optimizer)).param_groups  # type: ignore[arg-type]
        layers = [sum(p.numel() for p in layer.parameters()) for layer in layer_list(model)]
        shard = moments = moments_shard = steps = 0.0
        for group in groups:
            each = 2 if group["algorithm"] == "adamw" else 1
            for parameter in group["params"]:
                size, copies = parameter.numel(), parts if id(parameter) in split else 1
                part = size * parts / gpus  # a split parameter is one of `parts`; the others are whole everywhere
                shard, moments_shard = shard + part, moments_shard + each * part
                moments += each * size * copies
                steps += group["algorithm"] == "adamw"
        rest = sum(p.numel() for p in model.parameters()) - sum(layers)
    return Sizes(whole, shard, int(moments), moments_shard, max(layers), rest, int(steps))


def memory(skeleton: Skeleton, settings: Settings) -> Memory:
    """What a process of this run needs."""
    if settings.zero:
        return _zero(skeleton, settings)
    return _fsdp2(skeleton, settings) if settings.strategy == "fsdp2" else _whole(skeleton, settings)


def _trace(skeleton: Skeleton, settings: Settings, dtype: str, autocast: bool, kept: bool) -> Traced:
    work = Work(settings.batch_size, settings.sequence_length, dtype, autocast, settings.gradient_checkpointing,
                settings.optimizer, kept, settings.tensor_parallel)  # fmt: skip
    return trace(skeleton, work)


def _whole(skeleton: Skeleton, settings: Settings) -> Memory:
    """Everything in every process: one device, or DDP."""
    true = settings.precision == "bf16-true"
    kept = settings.accumulated > 1
    found = _trace(skeleton, settings, "bfloat16" if true else "float32", settings.precision == "bf16-mixed", kept)
    size, width = sizes(skeleton, settings.optimizer, 1, 1), 2 if true else 4
    parameters = gradients = size.all * width
    state = size.moments * width + 4 * size.steps
    buckets = gradients if settings.strategy == "ddp" else 0
    peak = buckets + max(
        gradients + found.forward, max(found.backward) + (gradients if kept else 0), gradients + found.step
    )
    dtype = "bfloat16" if true else "float32"
    return Memory(
        parameters, gradients, state, found.saved, peak - gradients - found.saved,
        {
            "parameters": dtype,
            "gradients": f"{dtype}; those of the last micro-batch live through the next forward pass",
            "optimizer": _moments(settings, dtype),
            "activations": _activations(settings),
            "working": "a chunk of logits, the head's gradient, autocast's copies"
            + ("; DDP's buckets, as large as the gradients" if buckets else ""),
        },
    )  # fmt: skip


def _fsdp2(skeleton: Skeleton, settings: Settings) -> Memory:
    """Shards of everything; layers are gathered when they are used."""
    true, full = settings.precision == "bf16-true", settings.precision == "32-true"
    width, computed = (2 if true else 4), (4 if full else 2)
    found = _trace(skeleton, settings, "float32" if full else "bfloat16", False, True)
    size = sizes(skeleton, settings.optimizer, settings.gpus, settings.tensor_parallel)
    shard, state = size.shard * width, size.moments_shard * width + 4 * size.steps
    gathered = computed * (size.rest + GATHERED_LAYERS * size.layer)
    # Gradients of a layer in the dtype of the computation, and two layers' in that of the reduction.
    reduced = computed * size.layer + 2 * width * size.layer
    last = (computed + width) * size.rest  # gradients of embedding and head, reduced when no activation is left
    peak = gathered + max(found.forward, max(found.backward) + reduced, last, found.step)
    dtype, compute = ("bfloat16" if true else "float32"), ("float32" if full else "bfloat16")
    return Memory(
        shard, shard, state, found.saved, peak - found.saved,
        {
            "parameters": f"{dtype}, spread over {settings.gpus} GPUs",
            "gradients": f"{dtype}, spread",
            "optimizer": f"{_moments(settings, dtype)}, spread",
            "activations": _activations(settings),
            "working": f"gathered in {compute}: embedding, head and {GATHERED_LAYERS} layers; gradients of a layer and "
            "what is reduced; a chunk of logits",
        },
    )  # fmt: skip


def _zero(skeleton: Skeleton, settings: Settings) -> Memory:
    """DeepSpeed: it computes in one dtype without autocast, and keeps float32 masters beside whatever that is."""
    full = settings.precision == "32-true"
    width, stage = (4 if full else 2), settings.zero
    dtype = "float32" if full else "bfloat16"
    found = _trace(skeleton, settings, dtype, False, True)
    size = sizes(skeleton, "adamw", settings.gpus, 1)
    shard = size.all / settings.gpus
    parameters = width * (shard if stage == 3 else size.all)
    gradients = width * (shard if stage > 1 else size.all)
    state = 12 * shard
    if stage == 3:
        held, what = width * (min(size.all, LIVE) + BUCKET), "gathered parameters and a bucket of gradients"
    else:
        held, what = 2 * width * BUCKET, "two buckets of gradients"
    moved = 0.0
    if settings.offload:
        moved, state = state + 4 * shard, 0.0  # the gradients go there too, in float32
        if stage == 3:
            moved, parameters = moved + parameters, 0.0
    step = 0 if settings.offload else 4 * shard  # the gradients of the shard in float32
    peak = held + max(found.forward, max(found.backward), step)
    spread = f"spread over {settings.gpus} GPUs"
    return Memory(
        parameters, gradients, state, found.saved, peak - found.saved,
        {
            "parameters": dtype + (f", {spread}" if stage == 3 else "") + (", on the host" if not parameters else ""),
            "gradients": dtype + (f", {spread}" if stage > 1 else ""),
            "optimizer": f"float32 masters and two moments, {spread}" + (", on the host" if settings.offload else ""),
            "activations": _activations(settings),
            "working": f"{what}; a chunk of logits, the head's gradient",
        },
        moved,
    )  # fmt: skip


def _moments(settings: Settings, dtype: str) -> str:
    return f"{dtype}, {'two moments' if settings.optimizer == 'adamw' else 'one moment of matrices, two of the rest'}"


def _activations(settings: Settings) -> str:
    return "the inputs of layers, the rest recomputed" if settings.gradient_checkpointing else "all that autograd keeps"


def host_memory(skeleton: Skeleton, settings: Settings) -> float:
    """Bytes of a node's own memory: each process makes the model there in float32; later, what was moved there."""
    made = 4 * sizes(skeleton, settings.optimizer, settings.gpus, settings.tensor_parallel).all
    return settings.local * max(made, memory(skeleton, settings).moved)
