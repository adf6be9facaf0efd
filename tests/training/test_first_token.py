"""The token that draws most attention as the first of a text, against a search through transformers' own weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sinktrain.base.errors import UserError
from sinktrain.sinks import SinkConfig
from sinktrain.training import SinkModule, first_token

VOCABULARY = 97


def by_eager_weights(model: torch.nn.Module, tokens: Tensor, texts: Tensor) -> Tensor:
    """(n,) the mean attention on each token in front of each text, over later queries, heads and layers."""
    found = []
    for token in tokens:
        rows = torch.cat((token.expand(len(texts), 1), texts), dim=1)
        layers = model(input_ids=rows, use_cache=False, output_attentions=True).attentions
        found.append(torch.stack([weights[:, :, 1:, 0].mean() for weights in layers]).mean())
    return torch.stack(found)


@pytest.mark.parametrize("finalists", [5, 200])
def test_the_most_attended_token_is_found(finalists: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_token, "FINALISTS", finalists)
    model = tiny_model("llama", attn_implementation="eager")
    with torch.no_grad():
        texts = first_token._own_texts(model, VOCABULARY, 0)
        every = torch.arange(VOCABULARY)
        first = by_eager_weights(model, every, texts[:1, :1])
        best = first.topk(min(finalists, VOCABULARY)).indices
        alpha = by_eager_weights(model, best, texts)
    assert texts.shape == (8, 32) and len(texts.unique()) > 10
    assert float(alpha.max() - alpha.median()) > 1e-3
    assert first_token.most_attended(model, VOCABULARY) == int(best[alpha.argmax()])


def test_the_row_begins_as_a_copy_of_it(model_folder: Path) -> None:
    module = SinkModule(name=str(model_folder), sink=SinkConfig(init="attended"))
    module.configure_model()
    base = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    weight = base.get_input_embeddings().weight.detach()
    token = first_token.most_attended(base, len(weight))
    row = module.model.get_input_embeddings().weight[module.sink_ids[0]].detach()
    distance = (weight - row).norm(dim=1)
    assert int(distance.argmin()) == token and float(distance[token]) < 0.05 * float(weight.std() * 32**0.5)


def test_where_it_cannot_be_found(tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match="init attended: a model without training attends to nothing"):
        SinkModule(config={"model_type": "llama"}, tokenizer=str(tokenizer_folder), sink=SinkConfig(init="attended"))
    with pytest.raises(UserError, match="init attended: is an option of kind `token`"):
        SinkConfig(kind="zero", init="attended")
    config = AutoConfig.for_model("bloom", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    bloom = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="cannot see the attention of bloom; use sink"):
        first_token.most_attended(bloom, VOCABULARY)
