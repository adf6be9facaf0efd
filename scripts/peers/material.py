"""What all contestants get: a model's weights in float32 and a text's token ids, in files that each can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.base.models import quiet

LEFT_OUT = ("rope_parameters", "dtype", "transformers_version", "layer_types", "head_dim", "mlp_bias")
"""Entries of a config of transformers 5 that 4.34 does not know, or that are told in another way."""


def old_config(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config of a Llama as transformers 4.34 reads it: `rope_theta` at the top level, `torch_dtype`.

    Args:
        config: as `PreTrainedConfig.to_dict()` of transformers 5 gives it.
        name: of the model, for the error message.

    Raises:
        UserError: 4.34 cannot run this model, or would run it as another one without saying so.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"--model {name}: {what}; name a plain Llama, which attention_sinks runs as well.")

    if config.get("model_type") != "llama":
        raise refuse(f"is a {config.get('model_type')} model")
    rope = config["rope_parameters"]
    if rope.get("rope_type", "default") != "default":
        raise refuse(f"scales its positions ({rope['rope_type']}) as transformers 4.34 does not")
    width = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, width) or config.get("mlp_bias"):
        raise refuse("has head widths or biases that transformers 4.34 does not know")
    kept = {key: value for key, value in config.items() if key not in LEFT_OUT}
    return {**kept, "rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": "float32"}


def write_material(model: str, text: str, tokens: int, folder: Path) -> dict[str, Any]:
    """Writes `folder`/model and `folder`/tokens.npy: the model's sinks, if it has any, and then the text.

    Args:
        model: as `sinktrain evaluate --model.name` takes it.
        text: as `sinktrain evaluate --text` takes it.
        tokens: how many to write, with the sinks.
        folder: an empty one.

    Returns:
        What the record says of the two.

    Raises:
        UserError: there is no such model or text, it is too short, or transformers 4.34 cannot run the model.
    """
    import numpy as np

    from sinktrain.evaluation.subject import ModelOptions, load_subject
    from sinktrain.evaluation.texts import load_text

    subject = load_subject(ModelOptions(model, device="cpu"))
    config = old_config(subject.model.config.to_dict(), model)
    material = load_text(text, subject.tokenizer, tokens - len(subject.sink_ids))
    with quiet():
        subject.model.save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "model" / "generation_config.json").unlink(missing_ok=True)
    ids = [*subject.sink_ids, *material.tokens.tolist()]
    np.save(folder / "tokens.npy", np.array(ids, dtype=np.int64))
    return {"model": subject.description, "text": material.description}
