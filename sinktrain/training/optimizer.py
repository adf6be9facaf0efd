"""AdamW, and a learning rate that warms up and decays by a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sinktrain.base.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay.

    Args:
        learning_rate: the peak, reached at the end of the warm-up.
        final_fraction: the learning rate of the last step, as a fraction of the peak.
        warmup_steps: optimizer steps of linear warm-up from zero.
        weight_decay: of matrices; vectors (norms and biases) are not decayed.
        betas: of AdamW.
        eps: of AdamW.
    """

    learning_rate: float = 3e-4
    final_fraction: float = 0.1
    warmup_steps: int = 10
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate {self.learning_rate}: must be above 0.")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps {self.warmup_steps}: must be 0 or more.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas {self.betas}: must lie between 0 and 1.")
        if not 0 <= self.final_fraction <= 1:
            raise UserError(f"optimizer.final_fraction {self.final_fraction}: must lie between 0 and 1.")


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; not fused, since Lightning's clipping refuses that in bf16-mixed."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def learning_rate_factor(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) as a fraction of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps))
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, max_steps: int) -> LambdaLR:
    """The schedule of `learning_rate_factor`, stepped once an optimizer step.

    Raises:
        UserError: `max_steps` is not given, or the warm-up is not shorter than it.
    """
    if max_steps < 1:
        raise UserError("trainer.max_steps: the schedule needs it; say how many optimizer steps the run has.")
    if config.warmup_steps >= max_steps:
        raise UserError(
            f"model.optimizer.warmup_steps {config.warmup_steps}: must be below trainer.max_steps {max_steps}."
        )
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, config, max_steps))
