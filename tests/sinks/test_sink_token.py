"""The sink is in front exactly once, is its own vocabulary entry, and its row is what the config says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens, save_tokenizer, sink_ids_of


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sinks_are_in_front_exactly_once(tokenizer: PreTrainedTokenizerFast, count: int, tmp_path: Path) -> None:
    plain = tokenizer("the cat").input_ids
    before, mark = len(tokenizer), fingerprint(tokenizer)
    ids = add_sink_tokens(tokenizer, SinkConfig(count=count))
    assert ids == list(range(before, before + count)) == sink_ids_of(tokenizer)
    assert fingerprint(tokenizer) == mark
    save_tokenizer(tokenizer, tmp_path)
    for some in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert plain and some("the cat").input_ids == ids + plain
        assert some(["the cat", ""]).input_ids == [ids + plain, ids]
        assert some("the cat", add_special_tokens=False).input_ids == plain
        assert some.bos_token_id == ids[0]
        assert some.decode(ids + plain, skip_special_tokens=True) == "the cat"
        assert sink_ids_of(some) == ids


def test_a_single_sink_is_bos_for_other_engines(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    add_sink_tokens(tokenizer, SinkConfig())
    save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is True
    template = json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]
    assert template["type"] == "TemplateProcessing" and template["single"][0]["SpecialToken"]["id"] == "<sink>"


def test_other_special_tokens_keep_their_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"], "pad_token": "<pad>"})
    add_sink_tokens(tokenizer, SinkConfig(count=2))
    assert tokenizer.pad_token == "<pad>" and tokenizer.eos_token == "<|endoftext|>"
    assert "<tool>" in tokenizer.all_special_tokens
    assert tokenizer.decode(tokenizer("<tool>", add_special_tokens=False).input_ids, skip_special_tokens=True) == ""


def test_kind_none_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer("the cat").input_ids
    assert add_sink_tokens(tokenizer, SinkConfig(kind="none")) == []
    assert tokenizer("the cat").input_ids == before


def test_a_second_sink_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    add_sink_tokens(tokenizer, SinkConfig())
    with pytest.raises(UserError, match="already"):
        add_sink_tokens(tokenizer, SinkConfig())


def test_a_tokenizer_without_room_is_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tokenizer), "add_special_tokens", lambda self, tokens, **kwargs: 0)
    with pytest.raises(UserError, match="no room"):
        add_sink_tokens(tokenizer, SinkConfig())


@pytest.mark.parametrize(("settings", "word"), [({"kind": "x"}, "sink.kind"), ({"count": 0}, "sink.count"),
                                                ({"init": "x"}, "sink.init")])  # fmt: skip
def test_bad_settings_name_the_option(settings: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        SinkConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["mean", "bos", "normal"])
def test_rows(tied: bool, init: str) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied, vocab_size=100)
    old = model.get_input_embeddings().weight.detach().clone()
    old_head = model.get_output_embeddings().weight.detach().clone()
    grow_embedding(model, 102, [100, 101], SinkConfig(count=2, init=init), copied=5)  # type: ignore[arg-type]
    new, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (new is head) == tied
    new, head = new.detach(), head.detach()
    assert new.shape[0] == head.shape[0] == model.config.vocab_size == 128  # the next multiple of 64
    assert torch.equal(new[:100], old) and torch.equal(head[:100], old_head)
    assert not torch.equal(new[100], new[101])
    near = {"mean": old.mean(dim=0), "bos": old[5], "normal": None}[init]
    if near is None:
        assert 0.5 < float(new[100:102].std() / old.std()) < 1.5
    else:
        assert 0 < float((new[100:102] - near).abs().max()) < 0.06 * float(old.std())
    assert torch.allclose(head[102:], old_head.mean(dim=0).expand(26, -1), atol=1e-6)
    if not tied:
        assert torch.allclose(head[100:102], old_head.mean(dim=0).expand(2, -1), atol=1e-6)


def test_room_that_is_there_already_is_used() -> None:
    model = tiny_model("llama", vocab_size=128)
    grow_embedding(model, 101, [100], SinkConfig())
    assert model.get_input_embeddings().weight.shape[0] == 128
    assert model.generation_config.suppress_tokens == list(range(100, 128))


def test_bos_row_without_bos_is_refused() -> None:
    with pytest.raises(UserError, match=r"sink\.init bos"):
        grow_embedding(tiny_model("llama"), 98, [97], SinkConfig(init="bos"), copied=None)


def test_the_sink_is_never_generated(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", vocab_size=len(tokenizer))
    ids = add_sink_tokens(tokenizer, SinkConfig())
    grow_embedding(model, len(tokenizer), ids, SinkConfig())
    with torch.no_grad():  # a sink that every position would choose
        model.lm_head.weight[ids] = 0
        model.lm_head.weight[:] *= 0.0
    prompt = torch.tensor([[*ids, 5, 6]])
    out = model.generate(prompt, max_new_tokens=20, do_sample=True, eos_token_id=None, pad_token_id=0)
    new = out[0, prompt.shape[1] :].tolist()
    assert len(new) == 20 and max(new) < ids[0]


@pytest.mark.parametrize("vocabulary", [63, 64, 65])
def test_new_models_have_as_many_rows_with_sinks_as_without(vocabulary: int) -> None:
    rows = []
    for count in range(4):
        config = SinkConfig(count=count) if count else SinkConfig(kind="none")
        model = tiny_model(vocab_size=vocabulary)
        before = model.get_input_embeddings().weight.detach().clone()
        ids = list(range(vocabulary, vocabulary + count))
        grow_embedding(model, vocabulary + count, ids, config, is_new=True)
        rows.append(len(model.get_output_embeddings().weight))
        assert torch.equal(model.get_input_embeddings().weight[:vocabulary], before)
        assert model.generation_config.suppress_tokens == list(range(vocabulary, rows[-1]))
    assert len(set(rows)) == 1 and rows[0] % 64 == 0
