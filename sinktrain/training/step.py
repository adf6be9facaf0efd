"""An optimizer step over a global batch: the sums behind its loss, its gradient put right, judged and clipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from sinktrain.training.guarded import GuardedOptimizer, mesh_of
from sinktrain.training.guards import GuardConfig, StepGuard
from sinktrain.training.notices import Notices
from sinktrain.training.zero import engine

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CONSTANT = 1024.0
"""What a micro-batch's summed NLL is divided by until the tokens of the global batch are known: any number will do, as
long as it is the same on all ranks; this one keeps losses near 1."""


class GlobalStep:
    """The optimizer step that is being made.

    The loss of an optimizer step is the mean over the tokens of the whole global batch. Lightning averages the means
    of micro-batches and ranks, which is another number when their token counts differ (its issue 20350). So a
    micro-batch contributes its sum over a constant, and the gradient is put right before it is clipped.

    Nothing here makes the host wait for the device, but `tell`, which is called on log steps.
    """

    def __init__(self, trainer: Trainer, config: GuardConfig, device: torch.device, notices: Notices) -> None:
        self.trainer, self.device, self.notices = trainer, device, notices
        self.guard = StepGuard(config, device)
        self._figures: dict[str, Tensor] = {}
        self._begin()

    def _begin(self) -> None:
        self._nll = torch.zeros((), device=self.device)
        self._tokens = torch.zeros((), device=self.device)
        self._divergence: Tensor | None = None

    def add(self, nll: Tensor, tokens: Tensor, divergence: Tensor | None = None) -> None:
        """Adds the summed NLL of a micro-batch of this rank, its number of predicted tokens, and its KL divergence."""
        self._nll += nll.detach()
        self._tokens += tokens
        if divergence is not None:
            self._divergence = divergence if self._divergence is None else self._divergence + divergence

    def finish(self, optimizer: Any) -> None:
        """Turns the gradients of the step, all of them there, into those of its loss, and judges the step."""
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, GuardedOptimizer):
            loss, scale = self._totals()
            gradients = [gradient for each in by_mesh(_trained(optimizer)) for gradient in _multiplied(each, scale)]
            self._judge(optimizer, loss, _norm(gradients))
        elif engine(self.trainer).is_gradient_accumulation_boundary():  # DeepSpeed asks after every micro-batch
            loss, scale = self._totals()
            # What its gradients are is known inside of its step.
            self._loss = loss
            inner.prepare = partial(self._prepare, optimizer, inner, loss, scale)

    def _totals(self) -> tuple[Tensor, Tensor]:
        """The loss of the global batch, and what makes its gradient of the one that is there."""
        trainer, ranks = self.trainer, self.trainer.world_size
        sums = [self._nll, self._tokens] + ([] if self._divergence is None else [self._divergence])
        totals = torch.cat((torch.stack(sums), self.notices.mine(self.device)))
        if ranks > 1:
            torch.distributed.all_reduce(totals)  # Lightning's `reduce` has a barrier, for which the host waits
        self.notices.arrived(totals[len(sums) :])
        nll, tokens, *divergence = totals[: len(sums)].unbind()
        self._kl = divergence[0] / tokens.clamp(min=1) if divergence else None
        self._begin()
        micro_batches: int = trainer.accumulate_grad_batches
        if trainer.strategy.handles_gradient_accumulation:  # DeepSpeed divides by their number once more
            micro_batches *= trainer.accumulate_grad_batches
        return nll / tokens.clamp(min=1), CONSTANT * micro_batches * ranks / tokens.clamp(min=1)

    def _prepare(self, optimizer: Any, inner: GuardedOptimizer, loss: Tensor, scale: Tensor) -> None:
        norm = torch.as_tensor(optimizer._global_grad_norm, dtype=torch.float32, device=self.device) * scale
        self._judge(inner, loss, norm)
        largest = self.trainer.gradient_clip_val
        inner.scale = scale * (largest / (norm + 1e-6)).clamp(max=1.0) if largest else scale  # as `clip` does

    def _judge(self, optimizer: Any, loss: Tensor, norm: Tensor) -> None:
        self._norm = norm
        optimizer.skip = self.guard.judge(self.trainer.global_step, loss, norm)
        self._figures = {
            "train/loss": loss,
            "train/grad_norm": norm,
            # A tensor of the host: Lightning would copy a number to the device, and wait for it.
            "train/learning_rate": torch.tensor(optimizer.param_groups[0]["lr"]),
            "train/skipped_steps": self.guard.skipped.float(),
        }
        if self._kl is not None:
            self._figures["train/kl"] = self._kl

    def figures(self, optimizer: Any) -> dict[str, Tensor]:
        """What to log of the step that was just made; nothing in the middle of one."""
        inner = getattr(optimizer, "optimizer", None)
        if isinstance(inner, GuardedOptimizer) and inner.prepare is not None:  # DeepSpeed left it out by itself
            inner.prepare = None
            self._judge(inner, self._loss, torch.full((), torch.inf, device=self.device))
        found, self._figures = self._figures, {}
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if found and (self.trainer.global_step + 1) % max(1, every) == 0:
            self.tell()
        return found

    def clip(self, optimizer: Optimizer, largest: float) -> None:
        """Scales the gradients down to a norm of `largest` at most; the norm is known already."""
        if engine(self.trainer) is None:
            for parameters in by_mesh(_trained(optimizer)):
                clip_grads_with_norm_(parameters, largest, self._norm)

    def tell(self) -> None:
        """Warns of steps that were left out since the last call.

        Raises:
            UserError: too many in a row; see `GuardConfig.stop_after`.
        """
        for step in self.guard.read(self._gather()):
            if self.trainer.is_global_zero:
                warnings.warn(f"left out {step}: the weights are as before it", stacklevel=2)

    def _gather(self) -> Callable[[Tensor], Tensor]:
        return self.trainer.strategy.all_gather if self.trainer.world_size > 1 else lambda tensor: tensor


def _trained(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that have a gradient, apart by the ranks that they are spread over: kernels on lists want one mesh."""
    found: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            found.setdefault(mesh_of(parameter), []).append(parameter)
    return list(found.values())


def _multiplied(parameters: list[nn.Parameter], scale: Tensor) -> list[Tensor]:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    return gradients


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all gradients together, those that are spread over ranks included; all ranks ask."""
    apart: dict[DeviceMesh | None, list[Tensor]] = {}
    for gradient in gradients:
        apart.setdefault(mesh_of(gradient), []).append(gradient)
    norms = [get_total_norm(each) for each in apart.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.stack(whole).norm()
