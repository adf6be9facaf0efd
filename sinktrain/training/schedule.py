"""The learning rate over a run: a linear warm-up, then a cosine, a line, or a plateau with a decay at its end."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sinktrain.base.errors import UserError
from sinktrain.training.optimizer import OptimizerConfig


def warmup_steps(config: OptimizerConfig, max_steps: int) -> int:
    """The optimizer steps of the warm-up."""
    return config.warmup_steps if config.warmup_fraction is None else round(config.warmup_fraction * max_steps)


def decay_steps(config: OptimizerConfig, max_steps: int) -> int:
    """The optimizer steps of the decay that ends the schedule `wsd`; at least 1."""
    return max(1, round(config.decay_fraction * max_steps)) if config.decay_steps is None else config.decay_steps


def learning_rate_factor(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) as a fraction of the peak.

    `cosine` and `linear` fall from the end of the warm-up to the last step. `wsd` (warm-up-stable-decay, MiniCPM,
    arXiv 2404.06395, section 4) stays at the peak and falls by a line over its last `decay_steps`.
    """
    warmup = warmup_steps(config, max_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "wsd":
        decay = decay_steps(config, max_steps)
        progress = (step + 1 - (max_steps - decay)) / decay
    else:
        progress = (step - warmup) / max(1, max_steps - 1 - warmup)
    progress = min(1.0, max(0.0, progress))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.final_fraction + (1 - config.final_fraction) * left


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, max_steps: int) -> LambdaLR:
    """The schedule of `learning_rate_factor`, stepped once an optimizer step, skipped ones too.

    Raises:
        UserError: `max_steps` is not given, or the warm-up (with the decay of `wsd`) does not fit into it.
    """
    if max_steps < 1:
        raise UserError("trainer.max_steps: the schedule needs it; say how many optimizer steps the run has.")
    warmup = warmup_steps(config, max_steps)
    if warmup >= max_steps:
        raise UserError(f"model.optimizer.warmup_steps {warmup}: must be below trainer.max_steps {max_steps}.")
    if config.schedule == "wsd" and warmup + (decay := decay_steps(config, max_steps)) > max_steps:
        raise UserError(
            f"model.optimizer.decay_steps {decay}: with {warmup} of warm-up more than trainer.max_steps {max_steps}; "
            f"give {max_steps - warmup} or fewer."
        )
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, config, max_steps))
