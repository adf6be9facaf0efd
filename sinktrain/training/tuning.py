"""What of a pretrained model is trained: everything, adapters, the sink with the norms, or the sink alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from sinktrain.base.errors import UserError, at_least
from sinktrain.sinks.outlet import has_outlet
from sinktrain.sinks.rows import NAME as ROWS
from sinktrain.sinks.rows import SinkRows
from sinktrain.training.adapters import add_adapters
from sinktrain.training.optimizer import SINKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TuningMode = Literal["full", "lora", "sink_only", "embed"]


@dataclass(frozen=True)
class TuningConfig:
    """What is trained, and whether the model is held to what it said before.

    Args:
        mode: `full`: every weight. `lora`: low-rank adapters of the layers' matrices (arXiv 2106.09685, with PEFT), and
            the sink. `sink_only`: the sink, every other weight as it was: a row of the embedding for each sink token.
            `embed`: the sink, and the scales and biases of the norms.
        distill: from 0 to 1, how much of the objective is the KL divergence from the next-token distribution of the
            model as it was, without the new sink and with all of the sample's text before; the rest is the NLL. It
            keeps the model from drifting to the text that it is tuned on. Where the weights as they were are not those
            in training (modes `full` and `embed`, outlets, a sink that was there), each process holds a copy of them.
        rank: r of `lora`.
        alpha: of `lora`; what the adapters add is scaled by alpha / r.
        dropout: of `lora`, on what goes into the adapters.
        targets: of `lora`, the names of the matrices, such as q_proj and v_proj; left out, all of the layers'.
    """

    mode: TuningMode = "full"
    distill: float = 0.0
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in (known := get_args(TuningMode)):
            raise UserError(f"model.tuning.mode {self.mode}: unknown; choose one of {', '.join(known)}.")
        if not 0 <= self.distill <= 1:
            raise UserError(f"model.tuning.distill {self.distill}: must lie between 0 and 1.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.tuning.dropout {self.dropout}: must lie between 0 and 1; 0 for none.")
        at_least("model.tuning.rank", self.rank, 1)
        if self.alpha <= 0:
            raise UserError(f"model.tuning.alpha {self.alpha}: must be above 0; twice the rank is usual.")
        if self.mode != "lora":
            for option, usual in (("rank", 16), ("alpha", 32.0), ("dropout", 0.0), ("targets", None)):
                if getattr(self, option) != usual:
                    raise UserError(
                        f"model.tuning.{option}: is an option of mode lora; leave it out, or use that mode."
                    )

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights that were there before stay as they are, beside what is added to them."""
        return self.mode in ("lora", "sink_only")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)


def free(model: PreTrainedModel, config: TuningConfig, sink_ids: Sequence[int], seed: int = 0) -> SinkRows | None:
    """Freezes all of `model` but what `config` says is trained, in place; adds what is to be added, drawn from `seed`.

    Returns:
        The rows of the sink tokens, where the rest of the embedding is frozen.

    Raises:
        UserError: nothing would be trained, or a target of the adapters does not exist.
    """
    if config.mode == "full":
        frozen = sorted(name for name, weight in model.named_parameters() if not weight.is_floating_point())
        if frozen:
            raise UserError(
                f"model.name: its {frozen[0]} is quantized, which gradients cannot train; use model.tuning.mode lora "
                "or sink_only, or load it dequantized."
            )
        return None
    model.requires_grad_(False)
    if config.mode == "lora":
        add_adapters(model, config.to_dict(), seed)
    rows = SinkRows(model, sink_ids) if sink_ids else None
    norms = _norms(model) if config.mode == "embed" else set()
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in SINKS or id(parameter) in norms:
            parameter.requires_grad_(True)
    for module in filter(has_outlet, model.modules()):
        for parameter in (p for p in module.parameters(recurse=False) if p.requires_grad and p.dtype.itemsize < 4):
            parameter.data = parameter.data.float()  # steps are smaller than bfloat16 can add up
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"model.tuning.mode {config.mode}: leaves nothing to train without a sink that is learned; use sink.kind "
            "token, or another mode."
        )
    return rows


def only_adds(model: PreTrainedModel) -> bool:
    """Whether all that is trained was added to `model`: adapters and rows of its own, which can be put aside."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return all(".lora_" in name or name.rpartition(".")[2] == ROWS for name in trained)


def _norms(model: PreTrainedModel) -> set[int]:
    """The parameters of norms: of modules that are called so, LayerNorm and RMSNorm in all their kinds."""
    found = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    return {id(p) for module in found for p in module.parameters(recurse=False) if p.dim() == 1}
