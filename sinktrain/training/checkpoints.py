"""What a checkpoint holds beside Lightning's own, and how to get a model back from it without Lightning."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import sinktrain
from sinktrain.base.errors import UserError
from sinktrain.base.paths import inside
from sinktrain.base.secrets import redact_config
from sinktrain.checkpoints.reader import Reader
from sinktrain.checkpoints.store import MANIFEST, Found, found
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.sinks.tokenizer import save_tokenizer
from sinktrain.training.tuning import TuningConfig
from sinktrain.training.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PREFIX = "model."
MODEL = "model.json"
"""The file of a checkpoint with what `checkpoint_record` makes."""
RUN = "run.json"
"""The file with the config and the machine of the run, where `sinktrain fit` wrote it."""


@dataclass(frozen=True)
class Trained:
    """A trained model, its tokenizer, the sink it was trained with, and what of it was trained."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sink: SinkConfig
    step: int
    tuning: TuningConfig = TuningConfig()  # noqa: RUF009 (it is frozen)


def checkpoint_record(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sink: SinkConfig, tuning: TuningConfig
) -> dict[str, Any]:
    """Plain values (no pickled objects) with the config, the tokenizer's files as text, the sink, what is trained."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        files = {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}
    generation = model.generation_config
    return {
        "version": sinktrain.__version__,
        "config": json.dumps(redact_config(model.config.to_dict())),
        "generation_config": json.dumps(generation.to_dict() if generation is not None else {}),
        "sink": sink.to_dict(),
        "tuning": tuning.to_dict(),
        "tokenizer": files,
    }


def check_record(checkpoint: dict[str, Any], sink: SinkConfig, tuning: TuningConfig) -> None:
    """Refuses to continue a checkpoint with another sink than its own, or to train something else of it.

    Raises:
        UserError: they differ, or the checkpoint is not one of sinktrain.
    """
    record = checkpoint.get("sinktrain")
    if record is None:
        raise UserError("ckpt_path: is not a checkpoint of sinktrain; name one that `sinktrain fit` wrote.")
    if SinkConfig(**record["sink"]) != sink:
        raise UserError(f"model.sink: {sink} differs from the checkpoint's {record['sink']}; use the same.")
    if (before := TuningConfig(**record.get("tuning", {}))) != tuning:
        raise UserError(
            f"model.tuning: {tuning} differs from the checkpoint's {before}; use the same, or begin a new run from an "
            "export (--model.name)."
        )


def load_checkpoint(
    path: Path, dtype: torch.dtype = torch.float32, option: str = "checkpoint", merge: bool = True
) -> Trained:
    """Reads a checkpoint of any strategy, on any machine, weight by weight into one model. Nothing is unpickled.

    Args:
        path: see `open_checkpoint`.
        dtype: of the weights.
        option: that named the path.
        merge: see `open_checkpoint`.

    Raises:
        UserError: as `open_checkpoint`, or a weight is missing or of another shape.
    """
    trained, weights = open_checkpoint(path, dtype, option, merge)
    model = trained.model
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *kept_buffers(model, weights)):
            tensor.copy_(weights.of_shape(name, tensor.shape))
    return trained


def open_checkpoint(
    path: Path, dtype: torch.dtype = torch.float32, option: str = "checkpoint", merge: bool = True
) -> tuple[Trained, Weights]:
    """What a checkpoint trained, with a model whose weights are not filled in yet (they take no memory), and these.

    Args:
        path: a checkpoint `step-...`, or a folder of them, of which the newest whole one is taken; or a `.ckpt` that
            `Trainer.save_checkpoint` wrote, of which tensors and plain values alone are unpickled.
        dtype: of the weights.
        option: that named the path.
        merge: add adapters to the matrices that they adapt; false leaves them out.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it is not one of sinktrain.
    """
    path, source = Path(path), f"{option} {path}"
    if path.is_dir():
        checkpoint = newest_whole(path, option)
        trained = _trained(checkpoint.document(MODEL), dtype, checkpoint.step, source)
        names, read = Reader(checkpoint.path).names("weights/"), _from_folder(checkpoint.path)
    else:
        single = read_checkpoint(path, option)
        trained = _trained(single["sinktrain"], dtype, single["global_step"], source)
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in single["state_dict"].items()}
        names, read = list(state), lambda name, dtype: state[name].to(dtype, copy=True)
    scaling = trained.tuning.alpha / trained.tuning.rank if trained.tuning.mode == "lora" and merge else None
    flipped = (name for name, module in trained.model.named_modules() if type(module).__name__ == "Conv1D")
    return trained, Weights(names, read, dtype, scaling, source, frozenset(f"{name}.weight" for name in flipped))


def _from_folder(folder: Path) -> Callable[[str, torch.dtype | None], torch.Tensor]:
    """Reads a tensor of a checkpoint by its name in the model."""
    reader = Reader(folder)

    def read(name: str, dtype: torch.dtype | None) -> torch.Tensor:
        tensor = reader.whole(f"weights/{name}", dtype)
        reader.close()  # what was mapped of the file counts as memory of this process
        return tensor

    return read


def run_record(path: Path, option: str) -> dict[str, Any] | None:
    """The config and the machine of the run that a checkpoint is of (see `run_record.py`), if it holds them.

    Raises:
        UserError: as `open_checkpoint`, or the record is damaged.
    """
    if not path.is_dir():
        return None
    checkpoint = newest_whole(path, option)
    record: dict[str, Any] | None = checkpoint.document(RUN) if (checkpoint.path / RUN).is_file() else None
    return record if record is not None and record.get("config") else None


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a checkpoint, or of a folder of them, rather than of a model."""
    path = Path(name)
    return path.suffix == ".ckpt" or (path / MODEL).is_file() or (path.is_dir() and bool(found(path)))


def newest_whole(path: Path, option: str) -> Found:
    """The checkpoint that `path` is, or the newest in it that is whole.

    Raises:
        UserError: there is none.
    """
    candidates = [Found(path, 0)] if (path / MANIFEST).is_file() else found(path)
    problems = []
    for each in candidates:
        try:
            each.check()
            return Found(each.path, int(each.manifest()["step"]))
        except (ValueError, OSError) as error:
            problems.append(f"{each.path.name} {error}")
    if problems:
        raise UserError(f"{option} {path}: no checkpoint in it is whole ({'; '.join(problems)}); name another.")
    raise UserError(f"{option} {path}: holds no checkpoint; name a step-... that `sinktrain fit` wrote, or its folder.")


def _trained(record: dict[str, Any], dtype: torch.dtype, step: int, source: str) -> Trained:
    """What a record says, and its model with weights that are not filled in yet, so that they take no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    fields = json.loads(record["config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    sink, tuning = SinkConfig(**record["sink"]), TuningConfig(**record.get("tuning", {}))
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()  # left out above, with the filling
    add_outlet(model, sink)
    model.generation_config = GenerationConfig.from_dict(json.loads(record["generation_config"]))
    return Trained(model.eval(), _tokenizer(record["tokenizer"], source), sink, step, tuning)


def kept_buffers(model: PreTrainedModel, weights: Weights) -> list[tuple[str, torch.Tensor]]:
    """Buffers that were kept: those that a model of this config does not fill by itself."""
    return [(name, buffer) for name, buffer in model.named_buffers() if name in weights]


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
