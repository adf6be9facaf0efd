"""The sink's row in the embedding: room for it, and what it holds before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sinktrain.base.errors import UserError
from sinktrain.sinks.config import SinkConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, which matrix units like."""


def grow_embedding(
    model: PreTrainedModel,
    vocabulary: int,
    sink_ids: list[int],
    config: SinkConfig,
    copied: int | None = None,
    is_new: bool = False,
) -> None:
    """Makes room for the sinks in the input embedding and the head, tied or not, and fills the new rows, in place.

    Rows that pad the vocabulary hold the mean row: an average logit, and never generated. The head's row for a sink is
    the mean too, whatever `config.init` says of the embedding: a sink is never a target.

    Args:
        model: a causal language model; its config and generation config learn the sink's id.
        vocabulary: the tokenizer's size, sinks included.
        sink_ids: the rows of the sinks.
        config: says what the rows hold.
        copied: the row to copy, for `init: bos` and `init: attended`.
        is_new: the model is to be trained from scratch. It then gets as many rows with up to 64 sinks as without, so
            that models of several kinds differ in nothing else. A pretrained model without a sink stays as it is.

    Raises:
        UserError: `init: bos` without a BOS token, or an embedding that cannot grow.
    """
    if not sink_ids and not is_new:
        return
    if config.init == "bos" and copied is None:
        raise UserError("sink.init bos: the model's tokenizer has no BOS token; use sink.init mean.")
    _check(model)
    old = _weight(model.get_input_embeddings()).shape[0]
    rows = -(-max(old + is_new * MULTIPLE, vocabulary) // MULTIPLE) * MULTIPLE
    model.resize_token_embeddings(rows, mean_resizing=False)
    embedding, head = _weight(model.get_input_embeddings()), model.get_output_embeddings()
    known = min([old, *sink_ids])
    with torch.no_grad():
        for weight in {id(weight): weight for weight in (embedding, _weight(head))}.values():  # one, if tied
            _fill_with_mean(weight, known)
        if isinstance(bias := getattr(head, "bias", None), Tensor):
            bias[known:] = bias[:known].mean()
        if sink_ids:
            embedding[sink_ids] = _first_rows(embedding, known, config, copied)
    _tell_configs(model, vocabulary, rows, sink_ids)


def _check(model: PreTrainedModel) -> None:
    """Refuses an embedding that is quantized, or spread over devices."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = getattr(module, "weight", None)
        if module is None or (isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point()):
            if not isinstance(weight, DTensor) and getattr(weight, "ds_id", None) is None:
                continue
            raise UserError(
                "model.name: its embedding is spread over devices already and cannot grow by a sink; load it whole: "
                "configs/trainer/fsdp2.yaml spreads it."
            )
        kept = "in no matrix" if not isinstance(weight, Tensor) else f"as {str(weight.dtype).removeprefix('torch.')}"
        raise UserError(
            f"model.name: its {type(module).__name__} keeps the vocabulary {kept}, quantized, and cannot grow by a "
            "sink; load a version whose embedding and head are not quantized."
        )


def _weight(module: torch.nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _fill_with_mean(weight: Tensor, known: int) -> None:
    weight[known:] = weight[:known].float().mean(dim=0).to(weight.dtype)


def _first_rows(embedding: Tensor, known: int, config: SinkConfig, copied: int | None) -> Tensor:
    """The rows (k, D) that the sinks start from."""
    old = embedding[:known].float()
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.count, old.shape[1], generator=generator).to(old.device) * old.std()
    if config.init == "normal":
        rows = noise
    else:
        # A hundredth of the spread tells several sinks apart and leaves a single one where it is.
        rows = (old.mean(dim=0) if config.init == "mean" else old[copied]) + 0.01 * noise
    return rows.to(embedding.dtype)


def _tell_configs(model: PreTrainedModel, vocabulary: int, rows: int, sink_ids: list[int]) -> None:
    """BOS is the sink, and generation suppresses sinks and padding rows."""
    generation: Any = model.generation_config
    if sink_ids:
        model.config.bos_token_id = sink_ids[0]
    if generation is not None:
        if sink_ids:
            generation.bos_token_id = sink_ids[0]
        suppressed = {*(generation.suppress_tokens or ()), *sink_ids, *range(vocabulary, rows)}
        generation.suppress_tokens = sorted(suppressed)
