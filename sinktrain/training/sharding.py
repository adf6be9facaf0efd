"""A model spread over ranks by FSDP2, each layer by itself, its matrices split besides where there is a plan."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from sinktrain.base.errors import UserError
from sinktrain.training.optimizer import SINKS

if TYPE_CHECKING:
    from sinktrain.training.module import SinkModule

_STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
}


def shard(module: SinkModule, mesh: DeviceMesh, precision: str) -> None:
    """Spreads the weights of a `SinkModule` over a mesh of `data_parallel` x `tensor_parallel` ranks, in place.

    Each layer is one unit, gathered when it is used; what is outside of layers is another, gathered for the whole
    loss, since the head is read there without being called, and for a look at the model beside training.

    Args:
        module: whose model is built.
        mesh: of two dimensions.
        precision: of the Trainer; with `bf16-mixed`, weights are gathered in bfloat16 and gradients summed in float32.

    Raises:
        UserError: the model has no plan for tensor parallelism, or too few heads.
    """
    tensor, data = mesh["tensor_parallel"], mesh["data_parallel"]
    if tensor.size() > 1:
        if (mode := module.tuning.mode) != "full":
            raise UserError(
                f"trainer.strategy.tensor_parallel {tensor.size()}: does not split what model.tuning.mode {mode} adds; "
                "use 1, or mode full."
            )
        _split_matrices(module.model, tensor)
    options: dict[str, Any] = {"mesh": data}
    if precision == "bf16-mixed":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in layers(module.model):
        fully_shard(layer, **options)
    fully_shard(module, **options)
    register_fsdp_forward_method(module, "losses")
    register_fsdp_forward_method(module, "looked_at")


def layers(model: Any) -> list[nn.Module]:
    """The layers of a model: those that transformers does not split over devices, else its longest list of modules."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [child for child in model.modules() if type(child).__name__ in names]
    if found:
        return found
    lists = [child for child in model.modules() if isinstance(child, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _split_matrices(model: Any, mesh: DeviceMesh) -> None:
    """Columns and rows by the plan of transformers. Embedding and head stay whole: the loss reads the head's weight."""
    text, parts = model.config.get_text_config(), mesh.size()
    plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    name = "trainer.strategy.tensor_parallel"
    if not plan or set(plan.values()) - _STYLES.keys():
        raise UserError(f"{name} {parts}: {text.model_type} has no plan for it; use 1, or another architecture.")
    if any(name.rpartition(".")[2] in SINKS for name, _ in model.named_parameters()):
        raise UserError(
            f"{name} {parts}: does not split sinks of single heads; use 1, or sink.kind token, zero or none."
        )
    for heads in (text.num_attention_heads, getattr(text, "num_key_value_heads", None)):
        if heads is not None and heads % parts:
            raise UserError(f"{name} {parts}: does not divide the {heads} heads of the model; choose one that does.")
    base = model.base_model
    styles: dict[str, ParallelStyle] = {
        path: _STYLES[style]()
        for path, _ in base.named_modules()
        for pattern, style in plan.items()
        if fnmatchcase(path, pattern)
    }
    parallelize_module(base, mesh, styles)
