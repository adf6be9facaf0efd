"""What the optimizer is told, and which parameters go where: AdamW alone, or Muon for the layers' matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sinktrain.base.errors import UserError, at_least
from sinktrain.training.guarded import GuardedOptimizer, UndecayedRows, mesh_of

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["cosine", "linear", "wsd"]

SINKS = ("sinks", "sink_key", "sink_value", "sink_rows")
"""The last part of the names of parameters that are sinks: in attention, and rows of tokens that are trained alone."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, weight decay, and the learning rate over the run.

    Args:
        name: `adamw` for all parameters; or `muon` for the matrices of the layers (their updates orthogonalized,
            arXiv 2502.16982) with AdamW for embeddings, head, norms, biases and sinks.
        learning_rate: the peak, reached at the end of the warm-up. One serves both optimizers: Muon's updates are
            scaled to the root mean square of AdamW's (0.2 sqrt(max(rows, columns)), arXiv 2502.16982, equation 4).
        schedule: after the warm-up, `cosine` and `linear` fall until the last step; `wsd` stays at the peak and falls
            by a line at the end.
        final_fraction: the learning rate of the last step, as a fraction of the peak.
        warmup_steps: optimizer steps of linear warm-up from zero.
        warmup_fraction: the warm-up as a fraction of trainer.max_steps, instead of warmup_steps.
        decay_steps: optimizer steps of the decay of `wsd`, instead of decay_fraction.
        decay_fraction: the decay of `wsd` as a fraction of trainer.max_steps.
        weight_decay: of matrices, the embedding and the head among them; decoupled from the gradient.
        decay_norms: decay the weights of norms too.
        decay_biases: decay biases too.
        decay_sinks: decay the sinks too: the rows of sink tokens in the embedding, sink logits, keys and values.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of Muon.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 3e-4
    schedule: ScheduleName = "cosine"
    final_fraction: float = 0.1
    warmup_steps: int = 10
    warmup_fraction: float | None = None
    decay_steps: int | None = None
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    decay_norms: bool = False
    decay_biases: bool = False
    decay_sinks: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for option, choices in (("name", OptimizerName), ("schedule", ScheduleName)):
            if getattr(self, option) not in (known := get_args(choices)):
                raise UserError(
                    f"optimizer.{option} {getattr(self, option)}: unknown; choose one of {', '.join(known)}."
                )
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate {self.learning_rate}: must be above 0.")
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        if self.decay_steps is not None:
            at_least("optimizer.decay_steps", self.decay_steps, 1)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas {self.betas}: must lie between 0 and 1.")
        for option in ("final_fraction", "warmup_fraction", "decay_fraction", "momentum"):
            value = getattr(self, option)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"optimizer.{option} {value}: must lie between 0 and 1.")
        if self.name == "muon" and not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optimizer.name muon: torch {torch.__version__} has none; use torch 2.9 or later, or adamw."
            )


def build_optimizer(model: nn.Module, config: OptimizerConfig, sink_ids: Sequence[int] = ()) -> GuardedOptimizer:
    """The optimizer over the parameters of `model` that are trained.

    Args:
        model: a causal language model of transformers, or any module.
        config: see there.
        sink_ids: the embedding's rows that are sinks; not decayed, unless `config` says so.
    """
    groups: dict[tuple[str, float, Any], list[nn.Parameter]] = {}
    for algorithm, decay, parameter in _sorted(model, config):
        # Fused kernels want all tensors of a call on one mesh.
        groups.setdefault((algorithm, decay, mesh_of(parameter)), []).append(parameter)
    settings: dict[str, dict[str, Any]] = {
        "adamw": {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps},
        "muon": {"lr": config.learning_rate, "momentum": config.momentum, "adjust_lr_fn": "match_rms_adamw"},
    }
    return GuardedOptimizer(
        [
            {"algorithm": algorithm, "params": parameters, "weight_decay": decay, **settings[algorithm]}
            # Decayed ones first, whatever the first parameter of the model is.
            for (algorithm, decay, _), parameters in sorted(
                groups.items(), key=lambda item: (item[0][1] == 0, item[0][0])
            )
        ],
        None if config.decay_sinks or not sink_ids else _sink_rows(model, sink_ids),
    )


def _sorted(model: nn.Module, config: OptimizerConfig) -> Iterator[tuple[str, float, nn.Parameter]]:
    """Every trained parameter with its algorithm and its weight decay."""
    tables = {id(p) for module in _tables(model) for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rpartition(".")[2]
        if last in SINKS:
            decayed = config.decay_sinks
        elif parameter.dim() > 1:
            decayed = True
        else:
            decayed = config.decay_biases if last.endswith("bias") else config.decay_norms
        matrix = parameter.dim() == 2 and last not in SINKS and id(parameter) not in tables
        algorithm = "muon" if config.name == "muon" and matrix else "adamw"
        yield algorithm, config.weight_decay if decayed else 0.0, parameter


def _tables(model: nn.Module) -> Iterator[nn.Module]:
    """The modules with a row for every token or position: embeddings and the head."""
    yield from (module for module in model.modules() if isinstance(module, nn.Embedding))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(head, nn.Module):
        yield head


def _sink_rows(model: Any, sink_ids: Sequence[int]) -> UndecayedRows | None:
    weight: Tensor = model.get_input_embeddings().weight
    return UndecayedRows(weight, sink_ids) if weight.requires_grad else None
