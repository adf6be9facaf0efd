"""Weights into safetensors files, one file's worth in memory at a time."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sinktrain.base.errors import UserError
from sinktrain.base.folders import umask
from sinktrain.base.models import quiet
from sinktrain.training.checkpoints import kept_buffers
from sinktrain.training.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_model(model: PreTrainedModel, weights: Weights, folder: Path, shard_size: str) -> None:
    """Writes a model, its config and its generation config, as `save_pretrained` does and in the names that it uses.

    Args:
        model: its weights are not filled in, and are placeholders afterwards.
        weights: of the model, read when a file is written.
        folder: to write into.
        shard_size: of the largest file, such as "5GB"; a single weight may be larger.

    Raises:
        UserError: the size is none, or a weight is missing.
    """
    from accelerate import cpu_offload

    if not re.fullmatch(r"0*[1-9]\d*[TGMK]B", shard_size):
        raise UserError(f"--shard_size {shard_size}: is no size; give one such as 5GB or 500MB.")
    for name, buffer in kept_buffers(model, weights):
        buffer.copy_(weights.of_shape(name, buffer.shape))
    cpu_offload(model, "cpu", state_dict=weights)  # any mapping will do
    model.tie_weights()  # a placeholder for each was made
    model.hf_device_map = {"": "cpu"}  # type: ignore[assignment]  # by which transformers knows to ask for the weights, file by file
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, max_shard_size=shard_size)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~umask())  # which safetensors makes private; a model is to be read by others
