"""What a checkpoint holds beside Lightning's own, and how to get a model back from it without Lightning."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import sinktrain
from sinktrain.base.errors import UserError
from sinktrain.base.paths import inside
from sinktrain.base.secrets import redact_config
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.sinks.tokenizer import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PREFIX = "model."


@dataclass(frozen=True)
class Trained:
    """A trained model, its tokenizer, and the sink it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sink: SinkConfig
    step: int


def checkpoint_record(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sink: SinkConfig) -> dict[str, Any]:
    """Plain values (no pickled objects) with the config, the tokenizer's files as text, and the sink."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        files = {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}
    generation = model.generation_config
    return {
        "version": sinktrain.__version__,
        "config": json.dumps(redact_config(model.config.to_dict())),
        "generation_config": json.dumps(generation.to_dict() if generation is not None else {}),
        "sink": sink.to_dict(),
        "tokenizer": files,
    }


def check_record(checkpoint: dict[str, Any], sink: SinkConfig) -> None:
    """Refuses to continue a checkpoint with another sink than its own.

    Raises:
        UserError: the sinks differ, or the checkpoint is not one of sinktrain.
    """
    record = checkpoint.get("sinktrain")
    if record is None:
        raise UserError("ckpt_path: is not a checkpoint of sinktrain; name one that `sinktrain fit` wrote.")
    if SinkConfig(**record["sink"]) != sink:
        raise UserError(f"model.sink: {sink} differs from the checkpoint's {record['sink']}; use the same.")


def load_checkpoint(path: Path, dtype: torch.dtype = torch.float32, option: str = "checkpoint") -> Trained:
    """Reads a checkpoint that `sinktrain fit` wrote. Nothing in it is unpickled but tensors and plain values.

    Raises:
        UserError: there is no such file, it is cut short, or it is not a checkpoint of sinktrain.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    checkpoint = read_checkpoint(Path(path), option)
    record = checkpoint["sinktrain"]
    fields = json.loads(record["config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    sink = SinkConfig(**record["sink"])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    add_outlet(model, sink)
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{option} {path}: its weights do not fit its config; name another checkpoint.") from error
    model.generation_config = GenerationConfig.from_dict(json.loads(record["generation_config"]))
    return Trained(model.eval(), _tokenizer(record["tokenizer"], f"{option} {path}"), sink, checkpoint["global_step"])


def read_checkpoint(path: Path, option: str) -> dict[str, Any]:
    """The checkpoint as it lies on the disk, memory-mapped.

    Raises:
        UserError: there is no such file, it is cut short, or `sinktrain fit` did not write it.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: no such checkpoint file; name a .ckpt that `sinktrain fit` wrote.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError) as error:
        raise UserError(
            f"{option} {path}: cannot be read, it is cut short or not a checkpoint; name another."
        ) from error
    if not isinstance(checkpoint, dict) or "sinktrain" not in checkpoint:
        raise UserError(f"{option} {path}: was not written by `sinktrain fit`; name a checkpoint that was.")
    return checkpoint


def _tokenizer(files: dict[str, str], source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            inside(Path(folder), name, source).write_text(text)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer
