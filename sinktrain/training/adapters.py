"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a model, by PEFT, which is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sinktrain.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("model.tuning.mode lora: needs PEFT; run `pip install peft`.") from error
    return peft


def lora_config(settings: Mapping[str, Any]) -> Any:
    """PEFT's config of our `rank`, `alpha`, `dropout`, `targets`."""
    return _peft().LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=settings["targets"] or "all-linear",
        task_type="CAUSAL_LM",
    )


def add_adapters(model: PreTrainedModel, settings: Mapping[str, Any], seed: int = 0) -> None:
    """Puts adapters beside the matrices of a model, in place, in float32; what they add is zero at first.

    The model stays of its class, and its matrices get names such as `q_proj.base_layer.weight`.

    Args:
        model: a causal language model.
        settings: see `lora_config`.
        seed: of their first weights, the same on all ranks; the global generator is left as it was.

    Raises:
        UserError: a target is no matrix of the model's layers.
    """
    head = model.get_output_embeddings()  # the loss reads its weight, beside which nothing would be trained
    linear = {name for name, module in model.named_modules() if _is_matrix(module) and module is not head}
    last = {name.rpartition(".")[2] for name in linear}
    for target in settings["targets"] or ():
        if target not in last and not any(name == target or name.endswith(f".{target}") for name in linear):
            raise UserError(
                f"model.tuning.targets {target}: is no matrix of the layers of {model.config.model_type}; choose from "
                f"{', '.join(sorted(last))}."
            )
    peft = _peft()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(lora_config(settings), model)
    for name, parameter in model.named_parameters():
        is_adapter = ".lora_" in name
        parameter.requires_grad_(is_adapter)
        if is_adapter and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Linear4bit", "Linear8bitLt")


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is what it was before it had adapters."""
    layers = _layers(model)
    for _, layer in layers:
        layer._disable_adapters = True  # its method would also change what needs gradients
    try:
        yield
    finally:
        for _, layer in layers:
            layer._disable_adapters = False


def save_adapters(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any], folder: Path, base: str) -> None:
    """Writes adapters as `PeftModel.from_pretrained` reads them.

    Args:
        weights: their matrices, by the names that they have in the model.
        settings: see `lora_config`.
        folder: to make.
        base: the model that they belong to, for adapter_config.json.
    """
    from safetensors.torch import save_file

    config = lora_config(settings)
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted({name.partition(".lora_")[0] for name in weights})
    folder.mkdir()
    renamed = {f"base_model.model.{name.replace('.default.', '.')}": weights[name].contiguous() for name in weights}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
