"""Options of a `SinkModule` that do not go together."""

from __future__ import annotations

from typing import Any, Literal, get_args

from sinktrain.base.errors import UserError
from sinktrain.sinks import SinkConfig
from sinktrain.training.checkpoints import is_checkpoint
from sinktrain.training.tuning import TuningConfig

Dtype = Literal["float32", "bfloat16"]
"""Of the weights of a pretrained model."""


def check_options(
    name: str | None,
    config: dict[str, Any] | None,
    tokenizer: str | None,
    sink: SinkConfig,
    tuning: TuningConfig,
    dtype: Dtype,
    z_loss: float,
) -> None:
    """Refuses them, each in a sentence; the arguments are those of `SinkModule`.

    Raises:
        UserError: one of them.
    """
    if (name is None) == (config is None):
        raise UserError("model.name, model.config: give one of them, a pretrained model or a config for a new one.")
    if tokenizer is None and name is None:
        raise UserError("model.tokenizer: a model from model.config needs one; name a folder or tokenizer.json.")
    if name is None and (tuning.mode != "full" or tuning.distill):
        raise UserError("model.tuning: is for a pretrained model; give model.name instead of model.config.")
    if name is None and sink.init == "attended":
        raise UserError(
            "sink.init attended: a model without training attends to nothing; use sink.init mean or normal."
        )
    if name is not None and is_checkpoint(name):
        raise UserError(
            f"model.name {name}: is a checkpoint of sinktrain; go on with it by --checkpoints.resume {name}, or "
            "`sinktrain export` it and name the export."
        )
    if dtype not in get_args(Dtype):
        raise UserError(f"model.dtype {dtype}: unknown; choose one of {', '.join(get_args(Dtype))}.")
    if dtype != "float32" and not tuning.keeps_weights:
        raise UserError(
            f"model.dtype {dtype}: is for weights that are not trained; use it with model.tuning.mode lora or "
            "sink_only, or leave it out and set trainer.precision bf16-mixed."
        )
    if z_loss < 0:
        raise UserError(f"model.z_loss {z_loss}: must be 0 or more; 1e-4 is usual.")
    if z_loss and tuning.distill:
        raise UserError("model.z_loss: does not go with model.tuning.distill; leave one of them out.")
