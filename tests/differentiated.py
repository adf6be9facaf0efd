"""What a function of tensors gives, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def output_and_gradients(
    how: Callable[..., Tensor], inputs: Mapping[str, Tensor], above: Tensor, dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """`output` and the gradient of each of `inputs`, where `above` is the output's, computed in `dtype` on `device`.

    All come back in float64, on the CPU.
    """
    leaves = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    output = how(**leaves)
    output.backward(above.to(device, dtype))
    found = {"output": output.detach(), **{name: x.grad for name, x in leaves.items() if x.grad is not None}}
    return {name: x.double().cpu() for name, x in found.items()}
