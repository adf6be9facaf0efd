"""What is evaluated: a model with its tokenizer and sinks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_model, load_tokenizer, trained_length
from sinktrain.sinks.tokenizer import sink_ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelOptions:
    """The model to evaluate.

    Args:
        name: a folder, a checkpoint of `sinktrain fit` (or a folder of them), a `.gguf` file, `package:NAME`, or a hub
            name.
        dtype: of its weights and computation.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        revision: of a hub model.
        trust_remote_code: run code that comes with a hub model; off unless you trust its author.
    """

    name: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Subject:
    """A loaded model, its tokenizer, and the ids of its sinks (none for a model without)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sink_ids: list[int]
    options: ModelOptions
    sink: dict[str, Any] | None

    @property
    def description(self) -> dict[str, Any]:
        """What the results say of the model."""
        return {
            "name": self.options.name,
            "architecture": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "dtype": self.options.dtype,
            "trained_length": trained_length(self.model.config),
            "sink": self.sink,
        }


def load_subject(options: ModelOptions) -> Subject:
    """Loads what `options` names, ready to evaluate.

    Raises:
        UserError: there is no such model, device or checkpoint.
    """
    dtype = getattr(torch, options.dtype)
    sink: dict[str, Any] | None = None
    from sinktrain.training.checkpoints import is_checkpoint, load_checkpoint

    if is_checkpoint(options.name):
        trained = load_checkpoint(Path(options.name), dtype, option="model.name")
        model, tokenizer, sink = trained.model, trained.tokenizer, trained.sink.to_dict()
    else:
        hub: dict[str, Any] = {"trust_remote_code": True} if options.trust_remote_code else {}
        if options.revision is not None:
            hub["revision"] = options.revision
        tokenizer = load_tokenizer(options.name, **hub)
        model = load_model(options.name, dtype, **hub)
    ids = sink_ids_of(tokenizer)
    if sink is None and ids:
        sink = {"kind": "token", "count": len(ids)}
    model.to(_device(options.device))  # type: ignore[arg-type]
    return Subject(model.eval(), tokenizer, ids, options, sink)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device {name}: not to be had on this machine; use cpu, cuda or auto.") from error
