"""One optimizer object over AdamW and Muon that can leave out a step without the host knowing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 spreads over ranks; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The ranks that a tensor is spread over; None where it is whole."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


class UndecayedRows:
    """Rows of a matrix that are given back what decoupled weight decay takes from them.

    AdamW decays a parameter w as a whole: w <- w - lr * decay * w - lr * update (Loshchilov and Hutter, ICLR 2019,
    algorithm 2, line 12). Adding lr * decay * w, of before the step, to some rows leaves these undecayed.
    """

    def __init__(self, weight: Tensor, rows: Sequence[int]) -> None:
        chosen = torch.zeros(weight.shape[0], 1, device=weight.device)
        chosen[list(rows)] = 1
        if isinstance(weight, DTensor):
            chosen = local(distribute_tensor(chosen, weight.device_mesh, weight.placements))
        self.weight, self.rows = weight, chosen.flatten().nonzero().flatten()

    def before(self) -> Tensor:
        """A copy of the rows (k, D)."""
        return local(self.weight)[self.rows]

    def give_back(self, before: Tensor, groups: list[dict[str, Any]], skip: Tensor | None) -> None:
        """After a step that began with the rows `before`; nothing where the step was skipped."""
        for group in groups:
            if any(parameter is self.weight for parameter in group["params"]) and self.weight.grad is not None:
                lost = before * (group["lr"] * group["weight_decay"])
                local(self.weight).index_add_(0, self.rows, lost if skip is None else lost * (1 - skip))


class GuardedOptimizer(Optimizer):
    """AdamW (torch's fused one) and Muon (torch's own) as one `torch.optim.Optimizer`.

    Strategies, schedules and checkpoints see one list of groups and one state. It steps as the two would by
    themselves, bit for bit.

    Set `skip` to a scalar tensor, 0 or 1, before a step (or in its closure): 1 leaves weights, moments and step counts
    as they are, whatever the gradients hold. It stays on the device, so that nothing waits for it.

    Inside of DeepSpeed it steps on flat parts of the weights, one group at a time. There `prepare`, set before the
    step, is called once, when the gradients are all there; and gradients are multiplied by `scale`.

    Args:
        groups: parameter groups of AdamW and Muon, with `algorithm`: `adamw` or `muon`. Groups of Muon hold matrices.
        undecayed: rows that the decay of their group leaves out.
    """

    def __init__(self, groups: list[dict[str, Any]], undecayed: UndecayedRows | None = None) -> None:
        self._inner: dict[str, Optimizer] = {}
        self.skip: Tensor | None = None
        self.scale: Tensor | None = None
        self.prepare: Callable[[], None] | None = None
        self.undecayed = undecayed
        for algorithm in sorted({group["algorithm"] for group in groups}):
            own = [group for group in groups if group["algorithm"] == algorithm]
            # Not fused, AdamW could not leave out a step on its own.
            self._inner[algorithm] = AdamW(own, fused=True) if algorithm == "adamw" else torch.optim.Muon(own)
        super().__init__([group for inner in self._inner.values() for group in inner.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both, after `closure`, which computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._scale_gradients()
        before = self.undecayed.before() if self.undecayed is not None else None
        for algorithm, inner in self._inner.items():
            # Looked up anew: loading a checkpoint, and some strategies, replace groups and state.
            inner.state = self.state
            inner.param_groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            if algorithm == "adamw":
                inner.found_inf = self.skip  # type: ignore[attr-defined]  # the fused kernel's own way to skip
                inner.step()
            elif self.skip is None:
                inner.step()
            else:
                self._step_one_by_one(inner, self.skip > 0)
        if self.undecayed is not None and before is not None:
            self.undecayed.give_back(before, self.param_groups, self.skip)
        return loss

    def _scale_gradients(self) -> None:
        if self.prepare is not None:
            prepare, self.prepare = self.prepare, None
            prepare()
        if self.scale is not None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(self.scale.to(parameter.grad))

    def make_states(self) -> None:
        """Gives every parameter the state that its first step would begin with, for a checkpoint to be read into."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self.make_state(parameter, group["algorithm"])

    def make_state(self, parameter: Tensor, algorithm: str) -> dict[str, Tensor]:
        """The state of what is stepped on, made if it has none yet."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            for name in ("exp_avg", "exp_avg_sq") if algorithm == "adamw" else ("momentum_buffer",):
                state[name] = torch.zeros_like(parameter, requires_grad=False)
            if algorithm == "adamw":
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return state

    def _step_one_by_one(self, inner: Optimizer, skip: Tensor) -> None:
        """Muon cannot skip by itself, so each matrix is copied and, if need be, put back: one copy at a time.

        The momentum b <- b + (1 - m)(g - b) stays as it is where the gradient g is b itself.
        """
        for group in inner.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                weight, gradient = local(parameter), local(parameter.grad)
                momentum = self.state[parameter].get("momentum_buffer")
                still = torch.zeros_like(gradient) if momentum is None else local(momentum)
                gradient.copy_(torch.where(skip, still, gradient))
                before = weight.clone()
                inner.param_groups = [{**group, "params": [parameter]}]
                inner.step()
                weight.copy_(torch.where(skip, before, weight))
