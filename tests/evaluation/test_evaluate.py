"""The grid end to end on a tiny model: right tokens, right sinks, figures that another program would get."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.data.prepare import prepare
from sinktrain.data.prepared import PreparedText
from sinktrain.evaluation.attention import attention_to_first
from sinktrain.evaluation.grid import full_cache, parse_caches
from sinktrain.evaluation.results import read_results
from sinktrain.evaluation.subject import ModelOptions, load_subject
from sinktrain.evaluation.texts import load_text
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens
from sinktrain.streaming import CacheSpec, reference_nll


@pytest.fixture(scope="module")
def sink_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two sinks, as exported."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = SinkConfig(count=2, init="normal")
    grow_embedding(model, len(tokenizer) + 2, add_sink_tokens(tokenizer, config), config)
    folder = tmp_path_factory.mktemp("sink")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, text: Path, out: Path, *more: str) -> int:
    return main(["evaluate", "--model.name", str(folder), "--text", str(text), "--out", str(out), "--tokens", "100",
                 "--caches", "0+16 2+14, 4+12", "--recompute", "20", "--chunk", "33", *more])  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "sinks"])
def test_every_token_gets_the_nll_of_the_reference(
    kind: str, model_folder: Path, sink_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    folder, sinks = (model_folder, []) if kind == "plain" else (sink_folder, [300, 301])
    assert run(folder, prepared_folder, tmp_path / "out") == 0
    found = read_results(tmp_path / "out")
    text = torch.tensor(PreparedText(prepared_folder).tokens("validation")[:100].astype("int64"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stream = torch.cat((torch.tensor(sinks, dtype=torch.long), text))
    for name in ("0+16", "2+14", "4+12"):
        expected = reference_nll(model, stream, CacheSpec.parse(name)).numpy()[max(0, len(sinks) - 1) :]
        if not sinks:
            assert np.isnan(found.nll[name][0])  # nothing stands before the first token
        assert np.abs(found.nll[name][-len(expected) :] - expected).max() < 1e-4
    recomputed = np.flatnonzero(np.isfinite(found.nll["recompute"]))
    assert len(recomputed) == 20 and recomputed[0] >= 16
    row = {row["name"]: row for row in found.record["rows"]}["2+14"]
    full = np.arange(100) + len(sinks) - 1 >= 16
    assert row["ppl_full_cache"] == pytest.approx(np.exp(found.nll["2+14"][full].mean()), rel=1e-5)
    assert row["ppl_all"] == pytest.approx(np.exp(np.nanmean(found.nll["2+14"])), rel=1e-5)
    assert row["tokens_full_cache"] == full.sum() and row["interval"][0] < np.log(row["ppl_full_cache"])
    assert found.record["model"]["sink"] == ({"kind": "token", "count": 2} if sinks else None)
    assert found.record["text"]["tokens"] == 100 and found.record["cache_size"] == 16


def test_all_models_are_recomputed_at_the_same_tokens(
    model_folder: Path, sink_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    places = []
    for name, folder in (("plain", model_folder), ("sinks", sink_folder)):
        assert run(folder, prepared_folder, tmp_path / name) == 0
        found = read_results(tmp_path / name)
        places.append(np.flatnonzero(np.isfinite(found.nll["recompute"])))
        assert found.full_cache()[places[-1]].all()
    assert len(places[0]) == 20 and places[0].tolist() == places[1].tolist()


def test_attention_to_first_against_a_softmax_by_hand(sink_folder: Path, prepared_folder: Path) -> None:
    subject = load_subject(ModelOptions(str(sink_folder)))
    text = load_text(str(prepared_folder), subject.tokenizer, 150)
    found = attention_to_first(subject, text, length=32, sequences=4)
    assert found is not None
    starts = torch.linspace(0, 150 - 30, 4).long().tolist()
    captured: list[torch.Tensor] = []
    layer = subject.model.model.layers[0]
    layer.self_attn.register_forward_pre_hook(lambda m, a, k: captured.append(k["hidden_states"]), with_kwargs=True)
    rows = torch.stack([torch.cat((torch.tensor([300, 301]), text.tokens[s : s + 30])) for s in starts])
    subject.model(rows)
    hidden = captured[0]
    heads, width = 4, 8
    q = layer.self_attn.q_proj(hidden).view(4, 32, heads, width).transpose(1, 2)
    k = layer.self_attn.k_proj(hidden).view(4, 32, 2, width).transpose(1, 2).repeat_interleave(2, dim=1)
    cos, sin = subject.model.model.rotary_emb(hidden, torch.arange(32)[None])
    half = lambda x: torch.cat((-x[..., 4:], x[..., :4]), dim=-1)  # noqa: E731
    q, k = (x * cos[:, None] + half(x) * sin[:, None] for x in (q, k))
    scores = (q @ k.transpose(-1, -2) / width**0.5).masked_fill(~torch.ones(32, 32).tril().bool(), float("-inf"))
    by_hand = scores.softmax(-1)[:, :, 1:, 0].mean(dim=(0, 2))
    assert torch.allclose(torch.tensor(found["share"][0]), by_hand.detach(), atol=2e-5)
    shares = np.array(found["share"])
    assert found["sink_metric"] == pytest.approx((shares > 0.3).mean())
    assert shares.shape == (3, 4)


def test_full_cache_is_where_eviction_begins() -> None:
    # With one sink and C = 4: the query at position 4 is the first that finds 4 cached; it predicts token 4.
    assert full_cache(8, sinks=1, size=4).tolist() == [False] * 4 + [True] * 4
    assert full_cache(8, sinks=0, size=4).tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("text", ["", "1+0", "x", "1+15 1+15"])
def test_bad_caches(text: str) -> None:
    with pytest.raises(UserError, match="--caches"):
        parse_caches(text)


def test_text_from_a_source(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on a mat and the dog ran to it")
    subject = load_subject(ModelOptions(str(model_folder)))
    text = load_text(str(tmp_path / "a.txt"), subject.tokenizer, 5, skip=2)
    whole = subject.tokenizer.encode("the cat sat on a mat and the dog ran to it", add_special_tokens=False)
    assert text.tokens.tolist() == whole[2:7]
    with pytest.raises(UserError, match="--tokens"):
        load_text(str(tmp_path / "a.txt"), subject.tokenizer, 500)
    with pytest.raises(UserError, match=r"--text .*absent\.txt"):
        load_text(str(tmp_path / "absent.txt"), subject.tokenizer, 5)


@pytest.mark.parametrize(("more", "words"), [
    (["--caches", "1+0"], "--caches"), (["--caches", "dense"], "--caches"), (["--tokens", "20"], "--tokens"),
    (["--model.device", "gpu9"], "model.device"), (["--model.name", "./nowhere"], "model.name ./nowhere")])  # fmt: skip
def test_mistakes_are_one_sentence(
    more: list[str], words: str, model_folder: Path, prepared_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(model_folder, prepared_folder, tmp_path / "out", *more) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_text_of_another_tokenizer_is_refused(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = prepare(str(prepared_folder.parent / "source.txt"), tmp_path / "other", train_tokenizer=280)
    assert run(model_folder, other, tmp_path / "out") == 2
    assert "tokenizer" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_that_is_broken_is_refused(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", prepared_folder, tmp_path / "out") == 2
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_existing_result_is_kept(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    assert run(model_folder, prepared_folder, tmp_path / "out") == 2
    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_verify_writes_and_exits(model_folder: Path, prepared_folder: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert run(model_folder, prepared_folder, out, "--tokens", "700", "--recompute", "400") == 0
    judged = ["verify", "--results", str(out), "--cache", "2+14", "--against", "4+12", "--resamples", "500"]
    wide = main([*judged, "--margin", "50"])
    assert wide == 0 and json.loads((out / "verdict.json").read_text())["statement"] == "proven"
    assert main([*judged, "--margin", "1e-9", "--out", str(tmp_path / "v.json")]) == 1
    assert json.loads((tmp_path / "v.json").read_text())["statement"] == "not proven"
    said = capsys.readouterr().out
    assert "Proven: on 700 tokens" in said and "Not proven" in said
    assert main(["verify", "--results", str(tmp_path)]) == 2
    assert main([*judged, "--margin", "0"]) == 2


def test_attention_to_first_beside_an_outlet(sink_folder: Path, prepared_folder: Path) -> None:
    """An outlet takes from every head what it gets, and a model with one is not looked at as if it had none."""
    subject = load_subject(ModelOptions(str(sink_folder)))
    text = load_text(str(prepared_folder), subject.tokenizer, 150)
    plain = attention_to_first(subject, text, length=32, sequences=4)
    add_outlet(subject.model, SinkConfig(kind="logit"))
    found = {}
    for logit in (-30.0, 1.0, 30.0):
        with torch.no_grad():
            for layer in subject.model.model.layers:
                layer.self_attn.sinks.fill_(logit)
        found[logit] = attention_to_first(subject, text, length=32, sequences=4)
    assert plain is not None and "outlet" not in plain
    outlet, share = (np.array([found[logit][key] for logit in found]) for key in ("outlet", "share"))  # type: ignore[index]
    assert outlet.shape == (3, 3, 4) and outlet[0].max() < 1e-6 and outlet[2].min() > 0.999
    assert (outlet[1] > 0.02).all() and (share[0] > share[1]).all() and share[2].max() < 1e-3
    assert np.allclose(share[0], np.array(plain["share"]), atol=1e-4)  # without an outlet to speak of
