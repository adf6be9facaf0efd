"""An optimizer step over a global batch: the sums behind its loss, its gradient put right, judged and clipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from sinktrain.training.guards import GuardConfig, StepGuard

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

    def __init__(self, trainer: Trainer, config: GuardConfig, device: torch.device) -> None:
        self.trainer, self.device = trainer, device
        self.guard = StepGuard(config, device)
        self._begin()

    def _begin(self) -> None:
        self._nll = torch.zeros((), device=self.device)
        self._tokens = torch.zeros((), device=self.device)

    def add(self, nll: Tensor, tokens: Tensor) -> None:
        """Adds the summed NLL of a micro-batch of this rank and its number of predicted tokens."""
        self._nll += nll
        self._tokens += tokens

    def finish(self, optimizer: Optimizer) -> dict[str, Any]:
        """Turns the gradients into those of the mean over the global batch, judges the step; returns what to log."""
        trainer, ranks = self.trainer, self.trainer.world_size
        totals = torch.stack((self._nll, self._tokens))
        if ranks > 1:
            totals = trainer.strategy.reduce(totals, reduce_op="sum")
        nll, tokens = totals.unbind()
        self._begin()
        scale = CONSTANT * trainer.accumulate_grad_batches * ranks / tokens.clamp(min=1)
        gradients = [gradient for parameter in _trained(optimizer) if (gradient := parameter.grad) is not None]
        torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
        loss, self._norm = nll / tokens.clamp(min=1), _norm(gradients)
        optimizer.skip = self.guard.judge(trainer.global_step, loss, self._norm)  # type: ignore[attr-defined]
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (trainer.global_step + 1) % max(1, every) == 0:
            self.tell()
        return {
            "train/loss": loss,
            "train/grad_norm": self._norm,
            # A tensor of the host: Lightning would copy a number to the device, and wait for it.
            "train/learning_rate": torch.tensor(optimizer.param_groups[0]["lr"]),
            "train/skipped_steps": self.guard.skipped.float(),
        }

    def clip(self, optimizer: Optimizer, largest: float) -> None:
        """Scales the gradients down to a norm of `largest` at most; the norm is known already."""
        clip_grads_with_norm_(_trained(optimizer), largest, self._norm)

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


def _norm(gradients: list[Tensor]) -> Tensor:
    norm = get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
