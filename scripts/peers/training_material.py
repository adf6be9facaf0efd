"""What all contestants in training get: one model folder, one prepared text, and the samples in sinktrain's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sinktrain.base.errors import UserError
from sinktrain.base.models import model_from_config, quiet

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
ROOM = 8
"""Rows of the vocabulary without a word: a sink token gets one, so models with and without it are equally large."""
DOCUMENT = 1000  # words


def model_config(name: str, vocabulary: int) -> dict[str, Any]:
    """The fields of configs/model/NAME.yaml, with `vocabulary` rows.

    Raises:
        UserError: there is no such file, or it is no model from scratch.
    """
    known = {path.stem: yaml.safe_load(path.read_text())["model"].get("config") for path in CONFIGS.glob("*.yaml")}
    usable = sorted(stem for stem, config in known.items() if config)
    if name not in usable:
        raise UserError(f"--model {name}: choose one of {', '.join(usable)}.")
    return {**known[name], "vocab_size": vocabulary}


def write_model(config: dict[str, Any], folder: Path) -> dict[str, int]:
    """Writes a model with random weights, and a tokenizer of as many words as it has rows, less `ROOM`.

    Returns:
        `parameters`, those of `matrices` (without an embedding that is not the head too), layers and width.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rows = config["vocab_size"]
    words = ["<|endoftext|>", *(f"w{i}" for i in range(1, rows - ROOM))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=words[0]).save_pretrained(folder)
    model = model_from_config(config, rows, seed=0)
    with quiet():
        model.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    embedding = 0 if tied else model.get_input_embeddings().weight.numel()
    return {
        "parameters": parameters,
        "matrices": parameters - embedding,
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
    }


def write_text(model: Path, tokens: int, out: Path) -> None:
    """Prepares random words, rarer ones as rare as Zipf has them: speed does not depend on what they say."""
    from transformers import AutoTokenizer

    from sinktrain.data.prepare import prepare

    generator = np.random.default_rng(0)
    words = len(AutoTokenizer.from_pretrained(model))
    ranks = np.arange(1, words)
    drawn = generator.choice(ranks, size=-(-tokens // DOCUMENT) * DOCUMENT, p=1 / ranks / (1 / ranks).sum())
    documents = [" ".join(f"w{i}" for i in part) for part in drawn.reshape(-1, DOCUMENT)]
    source = out.with_suffix(".txt")
    source.write_text("\n\f\n".join(documents))
    prepare(str(source), out, tokenizer=str(model), validation_fraction=0.1)
    source.unlink()


def write_rows(data: Path, length: int, samples: int, path: Path) -> None:
    """Writes the first samples (n, T) int64 of kind `none`, as `SinkDataModule` orders them with seed 0."""
    from sinktrain.data.mixture import Mixture
    from sinktrain.data.packing import Layout
    from sinktrain.data.prepared import PreparedText

    rows = Layout("chunk", length, (), 0).rows(PreparedText(data), "train")
    _, places = Mixture([len(rows)]).locate(np.arange(samples, dtype=np.int64))
    np.save(path, rows.read(places)["input_ids"])
