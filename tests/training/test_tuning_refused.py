"""What cannot be tuned is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from tuned_runs import refused

from sinktrain.base.errors import UserError
from sinktrain.sinks import SinkConfig
from sinktrain.training import SinkModule, TuningConfig


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "adapter"}, "mode adapter: unknown; choose one of full, lora, sink_only, embed"),
        ({"distill": 1.5}, "distill 1.5: must lie between 0 and 1"),
        ({"mode": "full", "rank": 4}, "rank: is an option of mode lora"),
        ({"mode": "lora", "rank": 0}, "rank"),
        ({"mode": "lora", "alpha": 0.0}, "alpha 0.0: must be above 0"),
        ({"mode": "lora", "dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_options_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TuningConfig(**fields)


def test_what_does_not_go_together(model_folder: Path, tokenizer_folder: Path) -> None:
    name, alone = str(model_folder), TuningConfig(mode="sink_only")
    targets = TuningConfig(mode="lora", targets=["q_proj", "query"])
    refused(
        "targets query: is no matrix of the layers of llama; choose from down_proj, gate_proj, k_proj",
        name=name,
        tuning=targets,
    )
    head = TuningConfig(mode="lora", targets=["q_proj", "lm_head"])
    refused("targets lm_head: is no matrix of the layers of llama", name=name, tuning=head)
    refused("leaves nothing to train", name=name, tuning=alone, sink=SinkConfig(kind="none"))
    refused("leaves nothing to train", name=name, tuning=alone, sink=SinkConfig(kind="zero"))
    refused("dtype bfloat16: is for weights that are not trained", name=name, dtype="bfloat16")
    refused("z_loss: does not go with", name=name, tuning=TuningConfig(distill=0.5), z_loss=1e-4)
    fields = {"model_type": "llama", "hidden_size": 32}
    refused("is for a pretrained model", config=fields, tokenizer=str(tokenizer_folder), tuning=alone)


def test_a_token_of_the_same_name_that_is_no_sink(model_folder: Path, tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["<sink>"])
    tokenizer.save_pretrained(tmp_path)
    refused("holds a token <sink> that is not put in front", name=str(model_folder), tokenizer=str(tmp_path))


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_an_embedding_that_cannot_grow(part: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinktrain.training import build as where

    def quantized(*args: Any, **kwargs: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        table = model.get_input_embeddings() if part == "embedding" else model.get_output_embeddings()
        table.weight = torch.nn.Parameter(table.weight.detach().to(torch.int8), requires_grad=False)
        return model

    monkeypatch.setattr(where, "load_model", quantized)
    kind = "Embedding" if part == "embedding" else "Linear"
    refused(f"its {kind} keeps the vocabulary as int8, quantized, and cannot grow", name=str(model_folder))


def test_an_embedding_that_is_spread_already(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinktrain.training import build as where

    def spread(*args: Any, **kwargs: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        model.get_input_embeddings().weight.ds_id = 0  # as ZeRO-3 marks what it has spread
        return model

    monkeypatch.setattr(where, "load_model", spread)
    refused("its embedding is spread over devices already and cannot grow by a sink", name=str(model_folder))


def test_quantized_matrices_are_not_trained_in_full(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bitsandbytes keeps them: eight bits in the layers, the embedding as it was."""
    from sinktrain.training import build as where

    class Int8(torch.nn.Module):
        def __init__(self, matrix: torch.nn.Linear) -> None:
            super().__init__()
            self.scale = float(matrix.weight.detach().abs().max()) / 127
            self.weight = torch.nn.Parameter((matrix.weight.detach() / self.scale).round().to(torch.int8), False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)

    def quantized(*args: Any, **kwargs: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        for layer in model.model.layers:
            layer.mlp.down_proj = Int8(layer.mlp.down_proj)
        return model

    monkeypatch.setattr(where, "load_model", quantized)
    refused(
        "down_proj.weight is quantized, which gradients cannot train; use model.tuning.mode", name=str(model_folder)
    )
    alone = SinkModule(name=str(model_folder), tuning=TuningConfig(mode="sink_only"))
    alone.configure_model()
    assert [name for name, p in alone.model.named_parameters() if p.requires_grad] == ["model.embed_tokens.sink_rows"]
