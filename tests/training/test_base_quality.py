"""The perplexity of a pretrained model before and after tuning, against transformers and the streaming reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_training import trainer
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_runs import make

from sinktrain.data import SinkDataModule
from sinktrain.data.prepare import prepare
from sinktrain.data.prepared import PreparedText
from sinktrain.sinks import SinkConfig
from sinktrain.streaming import CacheSpec, reference_nll
from sinktrain.training import SinkModule
from sinktrain.training.base_quality import BaseQuality
from sinktrain.training.saving import Checkpoints

TOKENS, SIZE = 90, 16


def ppl(nll: torch.Tensor) -> float:
    return math.exp(float(nll.double().mean()))


def dense(model: Any, ids: torch.Tensor, first: int) -> float:
    """By transformers alone: the tokens from `first` on, of ids (T,)."""
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, :-1].double()
    return ppl(-logits.log_softmax(-1).gather(-1, ids[1:, None])[first - 1 :, 0])


def run(model_folder: Path, data: Path, folder: Path, steps: int = 3, **fields: Any) -> tuple[SinkModule, BaseQuality]:
    quality = BaseQuality(tokens=TOKENS, size=SIZE, texts=fields.pop("texts", None))
    module = make(model_folder, "full", sink=SinkConfig(count=fields.pop("count", 1)))
    callbacks = [quality, *fields.pop("callbacks", [])]
    batches = SinkDataModule(str(data), sequence_length=32, batch_size=4)
    trainer(folder, steps, callbacks=callbacks, **fields).fit(module, batches)
    return module, quality


@pytest.mark.parametrize("count", [1, 2])
def test_before_and_after(count: int, model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module, quality = run(model_folder, prepared_folder, tmp_path, count=count)
    text = torch.from_numpy(PreparedText(prepared_folder).tokens("validation")[:TOKENS].astype("int64"))
    base = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    first = SIZE + count  # of the tokens of text that count
    cache = CacheSpec(count, SIZE - count)
    assert set(quality.before) == {"data/dense", f"data/{cache}"} == set(quality.after)
    assert quality.before["data/dense"] == pytest.approx(dense(base, text, first), rel=1e-4)
    assert quality.before[f"data/{cache}"] == pytest.approx(
        ppl(reference_nll(base, text, cache)[first - 1 :]), rel=1e-4
    )
    with_sinks = torch.cat((torch.tensor(module.sink_ids), text))
    tuned = module.model.eval()
    assert quality.after["data/dense"] == pytest.approx(dense(tuned, with_sinks, first + count), rel=1e-4)
    streamed = ppl(reference_nll(tuned, with_sinks, cache)[first + count - 1 :])
    assert quality.after[f"data/{cache}"] == pytest.approx(streamed, rel=1e-4)
    assert float(module.trainer.callback_metrics["before/data/dense"]) == pytest.approx(quality.before["data/dense"])
    assert quality.before["data/dense"] != pytest.approx(quality.after["data/dense"], rel=1e-3)


def test_texts_of_other_kinds_and_what_is_said(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("rain again home went " * 200)
    other = prepare(
        str(tmp_path / "other.txt"), tmp_path / "other", tokenizer=str(model_folder), validation_fraction=0.3
    )
    _, quality = run(model_folder, prepared_folder, tmp_path, texts=[str(other)])
    assert [key.split("/")[0] for key in quality.after] == ["data", "data", "other", "other"]
    said = capsys.readouterr().out
    change = 100 * (quality.after["other/dense"] / quality.before["other/dense"] - 1)
    expected = (
        f"PPL on other, dense: {quality.before['other/dense']:.3f} before, {quality.after['other/dense']:.3f} after"
    )
    assert f"{expected} ({change:+.2f}%)" in said


def test_a_run_that_goes_on_has_what_was_measured_before(
    model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    kept = str(tmp_path / "kept")
    _, first = run(model_folder, prepared_folder, tmp_path, 2, callbacks=[Checkpoints(kept)])
    _, second = run(model_folder, prepared_folder, tmp_path, 4, callbacks=[Checkpoints(kept)])
    assert second.before == first.before and second.after != first.after


def test_a_run_that_is_measured_is_one_that_is_not(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    measured, _ = run(model_folder, prepared_folder, tmp_path / "a")
    plain = make(model_folder, "full")
    trainer(tmp_path / "b", 3).fit(plain, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4))
    for one, other in zip(measured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_new_model_has_no_before(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    quality = BaseQuality(tokens=TOKENS, size=SIZE)
    module = SinkModule(config=config, tokenizer=str(tokenizer_folder))
    batches = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4)
    trainer(tmp_path, 12, callbacks=[quality]).fit(module, batches)
    assert quality.before == {} == quality.after


def test_only_the_old_vocabulary_is_chosen_from_before(
    model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """A row that was made to win everywhere must not count as the model's own."""
    module = make(model_folder, "full")
    module.configure_model()
    known = len(AutoTokenizer.from_pretrained(model_folder))
    assert module.known == known
    with torch.no_grad():
        module.model.get_output_embeddings().weight[known:] *= 1000
    quality = BaseQuality(tokens=TOKENS, size=SIZE)
    batches = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4)
    trainer(tmp_path, 2, callbacks=[quality]).fit(module, batches)
    text = torch.from_numpy(PreparedText(prepared_folder).tokens("validation")[:TOKENS].astype("int64"))
    base = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    assert quality.before["data/dense"] == pytest.approx(dense(base, text, SIZE + 1), rel=1e-4)


@pytest.mark.parametrize("kind", ["zero", "kv"])
def test_before_is_without_an_outlet(kind: Any, model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    found = {}
    for each in ("none", kind):
        quality = BaseQuality(tokens=TOKENS, size=SIZE)
        module = make(model_folder, "full", sink=SinkConfig(kind=each))
        batches = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4)
        trainer(tmp_path / each, 2, callbacks=[quality]).fit(module, batches)
        found[each] = quality.before
    assert found[kind] == pytest.approx(found["none"], rel=1e-5)


def test_a_model_that_cannot_stream_is_trained_all_the_same(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    fields = {"model_type": "gpt2", "vocab_size": len(tokenizer), "n_positions": 512}
    tiny_model("llama", **fields).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module, quality = run(tmp_path, prepared_folder, tmp_path / "run")
    assert module.trainer.global_step == 3 and quality.before == {} == quality.after
    said = capsys.readouterr().out
    assert "base_quality: the model is not measured before and after" in said and "cannot stream" in said
