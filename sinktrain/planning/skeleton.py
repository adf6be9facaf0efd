"""A model without its weights: its config, the sizes of its parameters, and where its layers are."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_config, quiet, trained_length

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, eq=False)  # told apart by identity: a config has no hash
class Skeleton:
    """A causal language model by its config; `checkpointing` is what its YAML says."""

    name: str
    config: PreTrainedConfig
    checkpointing: bool = False

    @property
    def layers(self) -> int:
        """Its depth."""
        return int(self.config.get_text_config().num_hidden_layers)

    def build(self, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
        """The model, or its first `layers` layers. Call it under a FakeTensorMode, where it takes no memory."""
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.config)
        if layers is not None:
            text = config.get_text_config()
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model


def read_skeleton(name: str, vocabulary: int | None) -> Skeleton:
    """The model that `name` means.

    Args:
        name: a YAML of `sinktrain fit` with `model.config` or `model.name`, or what `model.name` takes.
        vocabulary: the tokenizer's size, where the config does not tell it.

    Raises:
        UserError: there is no model, or nobody says how many rows its embedding has.
    """
    settings: dict[str, Any] = _read_yaml(name) if name.endswith((".yaml", ".yml")) else {"name": name}
    checkpointing = bool(settings.get("gradient_checkpointing", False))
    for option, usual in (("tuning", {"mode": "full", "distill": 0.0}), ("band", None)):
        chosen = settings.get(option)
        if chosen and (usual is None or any(chosen.get(key, value) != value for key, value in usual.items())):
            raise UserError(
                f"--model {name}: has model.{option}, which is not planned for; leave it out to plan training "
                "of every weight with full attention."
            )
    fields = settings.get("config")
    if fields is None:
        if not settings.get("name"):
            raise UserError(f"--model {name}: has neither model.config nor model.name; name a file that has one.")
        config = load_config(str(settings["name"]), "--model")
        return Skeleton(name, _with_rows(config, config.get_text_config().vocab_size, 0), checkpointing)
    size = vocabulary if vocabulary is not None else fields.get("vocab_size")
    if size is None:
        raise UserError(
            f"--vocabulary: {name} leaves the size to its tokenizer ({settings.get('tokenizer')}); give that size."
        )
    return Skeleton(name, _with_rows(_new_config(name, fields), int(size), 1), checkpointing)


def _read_yaml(name: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(name).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"--model {name}: cannot be read as YAML; name a file such as those in configs/model."
        ) from error
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}


def _new_config(name: str, fields: dict[str, Any]) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = dict(fields)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise UserError(f"--model {name}: model.config.model_type {kind} is unknown; name one of transformers.")
    try:
        config: PreTrainedConfig = AutoConfig.for_model(kind, **fields)
    except Exception as error:  # each architecture checks its fields in its own way
        raise UserError(f"--model {name}: transformers refuses model.config ({error}); correct the field.") from error
    return config


def _with_rows(config: PreTrainedConfig, vocabulary: int, new: int) -> PreTrainedConfig:
    """As many rows as `sinktrain.sinks.embedding.grow_embedding` makes: room for sinks, padded."""
    from sinktrain.sinks.embedding import MULTIPLE

    if vocabulary < 1:
        raise UserError(f"--vocabulary {vocabulary}: is below 1; give the size of the tokenizer.")
    config.get_text_config().vocab_size = -(-(vocabulary + new * MULTIPLE) // MULTIPLE) * MULTIPLE
    return config


def check_length(skeleton: Skeleton, length: int) -> None:
    """Refuses samples that `sinktrain fit` would refuse."""
    longest = trained_length(skeleton.config.get_text_config())
    if longest is not None and length > longest:
        raise UserError(
            f"--sequence_length {length}: the model has {longest} positions (max_position_embeddings); give no more."
        )


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """The module that holds the layers."""
    from torch import nn

    depth = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise UserError(f"--model: {type(model).__name__} has no list of {depth} layers; it cannot be planned for.")
    return found[0]


def split_layers(model: PreTrainedModel, parts: int) -> set[int]:
    """Makes the layers those of one of `parts` tensor-parallel processes, in place, by transformers' own plan.

    Returns:
        The ids of the parameters that are split.
    """
    from torch import nn

    if parts == 1:
        return set()
    plan = {**(getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {})}
    unknown = {kind for kind in plan.values() if kind not in ("colwise", "rowwise")}
    if not plan or unknown:
        raise UserError(
            f"--tensor_parallel {parts}: transformers has no plan of rows and columns for "
            f"{type(model).__name__}; use --tensor_parallel 1."
        )
    split = set()
    for name, module in model.base_model.named_modules():
        kind = plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if kind is None or not isinstance(module, nn.Linear):
            continue
        dim = 0 if kind == "colwise" else 1
        if module.weight.shape[dim] % parts or _heads(model) % parts:
            raise UserError(f"--tensor_parallel {parts}: does not divide {name} into whole heads; give a divisor.")
        module.weight = nn.Parameter(module.weight.detach().chunk(parts, dim)[0].clone())
        split.add(id(module.weight))
        if module.bias is not None and dim == 0:
            module.bias = nn.Parameter(module.bias.detach().chunk(parts)[0].clone())
            split.add(id(module.bias))
    return split


def _heads(model: PreTrainedModel) -> int:
    text = model.config.get_text_config()
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
