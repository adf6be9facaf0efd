"""The diagnosis: every figure against numpy, over the weights of transformers' own eager attention in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sinktrain.cli import main
from sinktrain.evaluation.activations import massive
from sinktrain.evaluation.attention import sink_share
from sinktrain.evaluation.diagnosis import in_buckets, log_edges, long_text, short_map, short_texts
from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.add_outlet import add_outlet
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens
from sinktrain.streaming.watchers import Block, Columns

IDS = torch.randint(1, 97, (5, 21), generator=torch.Generator().manual_seed(3))


def subject_of(model: PreTrainedModel, sinks: int = 0) -> Subject:
    nothing: Any = None
    return Subject(model, nothing, list(range(sinks)), ModelOptions("tiny"), None)


def sharp(family: str, times: float = 6) -> PreTrainedModel:
    """One whose heads give some sequences' first token more than 0.3, and others' less."""
    model = tiny_model(family, torch.float64)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj.weight" in name or "query_key_value.weight" in name:
                weight.mul_(times)
    return model


@torch.no_grad()
def eager(model: PreTrainedModel, ids: Tensor = IDS) -> np.ndarray:
    """(B, layers, H, T, T) attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    weights = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return torch.stack(weights, dim=1).double().numpy()


def test_sink_k_of_a_matrix_worked_out_by_hand() -> None:
    """Two sequences of 4 tokens, one layer of two heads; their queries come as two blocks."""
    even = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4, 1 / 4, 1 / 4, 1 / 4]]
    first = [[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0.8, 0.1, 0.1, 0], [0.7, 0.1, 0.1, 0.1]]
    second = [[1, 0, 0, 0], [0.2, 0.8, 0, 0], [0.1, 0.6, 0.3, 0], [0.1, 0.4, 0.3, 0.2]]
    own = np.eye(4).tolist()
    weights = torch.tensor([[even, first], [second, own]], dtype=torch.float64)
    columns = Columns([0, 1])
    for begin in (0, 2):
        part = weights[:, :, begin : begin + 2, : begin + 2]
        columns.block(Block(0, begin, 0, 4, part.log(), part, None, None))
    # alpha_1 = (A_11 + A_21 + A_31 + A_41) / 4 and alpha_2 = (A_22 + A_32 + A_42) / 3, as T - k + 1 = 4 and 3.
    alpha_1 = [[(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, (1 + 0.9 + 0.8 + 0.7) / 4], [(1 + 0.2 + 0.1 + 0.1) / 4, 1 / 4]]
    alpha_2 = [[(1 / 2 + 1 / 3 + 1 / 4) / 3, 0.1], [(0.8 + 0.6 + 0.4) / 3, 1 / 3]]
    assert np.allclose(columns.alpha[:, 0, :, 0], alpha_1, atol=1e-12)
    assert np.allclose(columns.alpha[:, 0, :, 1], alpha_2, atol=1e-12)
    # Above 0.3: alpha_1 is 0.521, 0.85 in the first sequence, 0.35, 0.25 in the second; alpha_2 0.361, 0.1; 0.6, 0.333.
    assert sink_share(columns.alpha).tolist() == [0.75, 0.75]
    assert sink_share(columns.alpha, 0.35).tolist() == [0.5, 0.5]


def test_sink_k_is_counted_in_each_sequence_and_then_averaged() -> None:
    model = sharp("llama")
    record, arrays = short_texts(subject_of(model, sinks=1), IDS)
    weights = eager(model)
    for n, name in enumerate(["sink", "text_1", "text_2"]):
        alpha = weights[..., n:, n].sum(axis=-1) / (21 - n)
        place = record["sink_metric"]["places"][name]
        assert place["heads"] == (alpha > 0.3).mean() and place["attention"] == pytest.approx(alpha.mean())
        assert np.allclose(place["by_layer"], alpha.mean(axis=(0, 2)))
        assert np.allclose(arrays["alpha"][n], alpha.mean(axis=0), atol=1e-6)
    first = weights[..., 0].mean(axis=-1)
    assert (first > 0.3).mean() != (first.mean(axis=0) > 0.3).mean()  # else this would not tell the two apart
    layer, head, alpha = record["sink_metric"]["strongest"][0]
    assert first.mean(axis=0).max() == pytest.approx(alpha) == pytest.approx(first.mean(axis=0)[layer, head])
    assert arrays["places"].tolist() == ["sink", "text_1", "text_2", "text_3", "text_4"]


def test_entropy_is_that_of_the_rows_from_the_second_on() -> None:
    model = sharp("qwen2")
    record, arrays = short_texts(subject_of(model), IDS)
    rows = eager(model)[..., 1:, :]
    entropy = -np.where(rows > 0, rows * np.log(np.maximum(rows, 1e-300)), 0).sum(axis=-1).mean(axis=(0, 3))
    assert np.allclose(arrays["entropy"], entropy, atol=1e-6) and float(entropy.std()) > 0.05
    assert record["entropy"]["mean"] == pytest.approx(entropy.mean())
    assert record["entropy"]["even"] == pytest.approx(np.log(np.arange(2, 22)).mean())


def test_maps_are_means_of_logits_and_probabilities() -> None:
    """Logits less that on position 0 are the logarithm of the attention less that of position 0, in each text."""
    model = tiny_model("llama", torch.float64)
    found = short_map(subject_of(model), IDS)
    weights, seen = eager(model), np.tril(np.ones((21, 21), dtype=bool))
    assert np.allclose(found["probabilities"], weights.mean(axis=0), atol=1e-6)
    assert (np.isnan(found["logits"]) == ~seen).all() and (found["probabilities"][..., ~seen] == 0).all()
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = (np.log(weights) - np.log(weights[..., :1])).mean(axis=0)
    assert np.allclose((found["logits"] - found["logits"][..., :1])[..., seen], logarithms[..., seen], atol=1e-4)


def test_logits_in_windows_and_under_a_cap() -> None:
    config = AutoConfig.for_model(
        "gemma2", vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(100)
    found = short_map(subject_of(model), IDS)
    distance = np.arange(21)[:, None] - np.arange(21)
    assert (np.isfinite(found["logits"][0]) == ((distance >= 0) & (distance < 6))).all()  # its first layer is sliding
    assert (np.isfinite(found["logits"][1]) == (distance >= 0)).all()
    assert 1.0 < np.nanmax(np.abs(found["logits"])) <= 2.0
    assert np.allclose(found["probabilities"].sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "logit", "kv"])
def test_an_outlet_has_a_map_of_its_own(kind: str) -> None:
    """The softmax over its logit and those of the keys gives the probabilities."""
    model = tiny_model("llama", torch.float64)
    add_outlet(model, SinkConfig(kind=kind))  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in model.model.layers:
            for name, weight in layer.self_attn.named_parameters(recurse=False):
                weight.copy_(torch.linspace(-2, 3, weight.numel()).view_as(weight) if "sink" in name else weight)
    found = short_map(subject_of(model), IDS[:1])  # of one text, so that a mean of logits is a logit
    logits = np.concatenate((found["outlet_logits"][..., None], np.nan_to_num(found["logits"], nan=-np.inf)), axis=-1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    assert np.allclose(found["outlet_probabilities"], weights[..., 0], atol=1e-5)
    assert np.allclose(found["probabilities"], weights[..., 1:], atol=1e-5)
    assert kind != "zero" or (found["outlet_logits"] == 0).all()
    record, arrays = short_texts(subject_of(model), IDS)
    outlet = record["sink_metric"]["places"]["outlet"]
    assert 0 < outlet["attention"] < 1 and arrays["places"][-1] == "outlet"
    row, _ = long_text(subject_of(model), IDS[:1], 4)
    assert row["entropy"]["even"] == pytest.approx(np.log(np.arange(3, 23)).mean())
    _, arrays = long_text(subject_of(model), IDS[:1], 4)
    assert np.allclose(arrays["long"].sum(axis=-1) + arrays["long_outlet"], 1, atol=1e-5)


def test_the_long_text_is_pooled_and_bucketed() -> None:
    model, length = tiny_model("gpt_neox", torch.float64), 300  # more than two blocks of 128 queries
    ids = torch.randint(1, 97, (1, length), generator=torch.Generator().manual_seed(4))
    record, arrays = long_text(subject_of(model), ids, bins=7)
    weights = eager(model, ids)[0]
    bin_of = np.arange(length) * 7 // length
    for q in range(7):
        for k in range(7):
            cell = weights[:, :, bin_of == q][..., bin_of == k].sum(axis=-1).mean(axis=(1, 2))
            assert np.allclose(arrays["long"][:, q, k], cell, atol=1e-6)
    assert np.allclose(arrays["long"].sum(axis=-1), 1, atol=1e-5)
    begins, first = arrays["along"], weights[..., 0].mean(axis=1)
    assert begins[:6].tolist() == [1, 2, 3, 4, 5, 6] and (np.diff(begins) > 0).all() and begins[-1] == 256
    ends = [*begins[1:], length]
    expected = np.array([first[:, b:e].mean(axis=1) for b, e in zip(begins, ends, strict=True)]).T
    assert np.allclose(arrays["along_dense"], expected, atol=1e-6)
    assert np.allclose(record["dense"], expected.mean(axis=0), atol=1e-6)


def test_buckets_cover_every_query_but_the_first() -> None:
    for length in (2, 3, 17, 64, 4096):
        edges = log_edges(length)
        assert edges[0] == 1 and edges[-1] == length and (np.diff(edges) > 0).all()
    assert in_buckets(torch.arange(8.0)[None], np.array([1, 2, 4, 8])).tolist() == [[1.0, 2.5, 5.5]]
    assert len(log_edges(4096)) == 44


def test_norms_and_activations_are_those_of_transformers() -> None:
    model = tiny_model("llama", torch.float64)
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 5] = 4000.0  # a token whose state is massive, at the third position
        ids = IDS.where(IDS != 7, 8)
        ids[:, 2] = 7
        own = model(input_ids=ids, use_cache=True, output_hidden_states=True)
    hooks = len(model.model.layers[0]._forward_hooks)
    record, arrays = short_texts(subject_of(model, sinks=1), ids)
    hidden = torch.stack(own.hidden_states[1:-1], dim=1).numpy()  # the last of transformers is behind the norm
    keys = np.stack([layer.keys.numpy() for layer in own.past_key_values.layers], axis=1)
    values = np.stack([layer.values.numpy() for layer in own.past_key_values.layers], axis=1)
    norms = {"keys": np.linalg.norm(keys, axis=-1).mean(axis=2), "values": np.linalg.norm(values, axis=-1).mean(axis=2)}
    for name, norm in norms.items():  # (B, layers, T)
        assert np.allclose(arrays[f"norm_{name}"], norm.mean(axis=0), rtol=1e-5)
        assert np.allclose(record["norms"][name]["first"], norm[..., 0].mean(axis=0))
        middle = np.sort(norm[..., 1:], axis=-1)[..., 9]  # of 20, the lower of the two in the middle
        assert np.allclose(record["norms"][name]["others"], middle.mean(axis=0))
    assert np.allclose(arrays["norm_hidden"][:2], np.linalg.norm(hidden, axis=-1).mean(axis=0), rtol=1e-5)
    found, size = record["massive_activations"], np.abs(hidden)
    assert np.allclose(found["largest"][:2], size.max(axis=(2, 3)).mean(axis=0))
    assert np.allclose(found["median"][:2], np.median(size, axis=(2, 3)).mean(axis=0), rtol=1e-2)
    assert found["position"][:2] == [2, 2] and found["dimension"][:2] == [5, 5] and found["there"][:2] == [1.0, 1.0]
    assert len(found["largest"]) == len(record["norms"]["hidden"]["ratio"]) == 3
    assert len(model.model.layers[0]._forward_hooks) == hooks  # transformers' own


def test_what_is_massive() -> None:
    largest, median = torch.tensor([[99.0, 101.0], [2000.0, 500.0]]), torch.tensor([[0.01, 0.1], [2.0, 1.0]])
    place = torch.tensor([[[0, 3], [0, 3]], [[1, 3], [0, 3]]])
    found = massive(largest, median, place)
    assert found["massive"] == [0.5, 0.5]  # 99 is too small, 500 only 500 times the median
    assert found["ratio"] == pytest.approx([(9900 + 1000) / 2, (1010 + 500) / 2])
    assert found["there"] == [0.5, 1.0] and found["dimension"] == [3, 3] and found["position"][1] == 0


@pytest.fixture(scope="module")
def sink_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a sink, as exported."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = SinkConfig(init="normal")
    grow_embedding(model, len(tokenizer) + 1, add_sink_tokens(tokenizer, config), config)
    folder = tmp_path_factory.mktemp("sink")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, text: Path, out: Path, *more: str) -> int:
    return main(["diagnose", "--model.name", str(folder), "--text", str(text), "--out", str(out), "--tokens", "600",
                 "--sequences", "6", "--length", "24", "--map_sequences", "8", "--map_length", "9", "--long", "200",
                 "--bins", "16", "--cache", "1+31", *more])  # fmt: skip


def test_the_verb_writes_its_folder(
    sink_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sink_folder, prepared_folder, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "sink " in said and "text_1" in said and "Sink_k" in said and "cache 1+31" in said and "entropy" in said
    text = (tmp_path / "out" / "diagnosis.json").read_text()
    record = json.loads(text)
    assert (record["schema"], record["kind"], record["notes"]) == (1, "diagnosis", [])
    assert record["model"]["sink"] == {"kind": "token", "count": 1} and record["text"]["tokens"] == 600
    metric = record["sink_metric"]
    assert (metric["sequences"], metric["length"]) == (6, 25) and "torch" in record["environment"]
    assert max(len(f"{abs(x):.9g}".replace(".", "").lstrip("0")) for x in metric["places"]["sink"]["by_layer"]) <= 5
    with np.load(tmp_path / "out" / "maps.npz", allow_pickle=False) as maps:
        shapes = {name: maps[name].shape for name in maps.files}
        assert np.allclose(maps["long"].sum(axis=-1), 1, atol=1e-5)
        assert float(np.abs(maps["along_dense"] - maps["along_stream"])[:, maps["along"] < 24].max()) < 1e-5
        assert float(np.abs(maps["along_dense"] - maps["along_stream"])[:, maps["along"] > 40].max()) > 1e-3
    buckets = len(record["long"]["along"])
    assert shapes == {
        "logits": (3, 4, 9, 9), "probabilities": (3, 4, 9, 9), "long": (3, 16, 16), "along": (buckets,),
        "along_dense": (3, buckets), "along_stream": (3, buckets), "places": (5,), "alpha": (5, 3, 4),
        "entropy": (3, 4), "entropy_long": (3, 4),
        "norm_hidden": (3, 25), "norm_keys": (3, 25), "norm_values": (3, 25),
    }  # fmt: skip
    assert run(sink_folder, prepared_folder, tmp_path / "out") == 2  # it is there already
    assert (tmp_path / "out" / "diagnosis.json").read_text() == text


@pytest.mark.parametrize(("cache", "words"), [
    ("1+197", []), ("1+198", ["evicts nothing before the last of 200 positions"]),
    ("1+9999", ["holds 10000 positions, the model was trained for 512", "evicts nothing"]),
    ("null", ["cache 1+255 evicts nothing"])])  # fmt: skip
def test_a_cache_that_shows_nothing_is_noted(
    cache: str, words: list[str], sink_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    assert run(sink_folder, prepared_folder, tmp_path / "out", "--cache", cache) == 0
    notes = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["notes"]
    assert len(notes) == len(words) and all(part in note for part, note in zip(words, notes, strict=True))
    with np.load(tmp_path / "out" / "maps.npz", allow_pickle=False) as maps:  # in a bucket one query counts for little
        differ = float(np.abs(maps["along_dense"] - maps["along_stream"])[:, -1].max())
    assert differ < 1e-7 if words else differ > 1e-7


def test_a_model_that_cannot_stream_is_diagnosed_all_the_same(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "model")
    arguments = ["diagnose", "--model.name", str(tmp_path / "model"), "--text", str(prepared_folder), "--tokens", "600",
                 "--sequences", "6", "--map_sequences", "8", "--long", "200"]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert record["long"]["tokens"] == 128 and record["long"]["stream"] is None and len(record["notes"]) == 2
    assert "nothing was streamed" in capsys.readouterr().out
    assert main([*arguments, "--cache", "1+31", "--out", str(tmp_path / "other")]) == 2


def test_bfloat16_and_two_sinks(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = SinkConfig(count=2, init="normal")
    grow_embedding(model, len(tokenizer) + 2, add_sink_tokens(tokenizer, config), config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        assert run(tmp_path / "model", prepared_folder, tmp_path / dtype, "--model.dtype", dtype) == 0
    exact, rounded = (
        json.loads((tmp_path / dtype / "diagnosis.json").read_text()) for dtype in ("float32", "bfloat16")
    )
    assert len(exact["notes"]) == 1 and "fewer than the 2 trained sinks" in exact["notes"][0]
    assert list(exact["sink_metric"]["places"])[:3] == ["sink_0", "sink_1", "text_1"]
    for key in ("dense", "stream"):
        assert np.allclose(exact["long"][key], rounded["long"][key], atol=0.05)


@pytest.mark.parametrize(("more", "words"), [
    (["--tokens", "100"], "--tokens 100"), (["--cache", "dense"], "--cache dense"), (["--cache", "x"], "--cache"),
    (["--map_length", "1"], "--map_length"), (["--map_length", "2"], "--map_length 2"), (["--bins", "0"], "--bins"),
    (["--length", "600", "--sequences", "1"], "--length 600"), (["--text", "./no"], "--text ./no"),
    (["--length", "600"], "--length 600"),
    (["--length", "600", "--sequences", "1", "--long", "600"], "--length 600")])  # fmt: skip
def test_mistakes_are_one_sentence(
    more: list[str], words: str, sink_folder: Path, prepared_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(sink_folder, prepared_folder, tmp_path / "out", *more) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_model_and_one_that_cannot_be_seen_are_refused(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
    bloom = AutoConfig.for_model("bloom", vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    for each, words in ((model, "not finite"), (AutoModelForCausalLM.from_config(bloom), "bloom")):
        each.save_pretrained(tmp_path / words)
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / words)
        capsys.readouterr()
        assert run(tmp_path / words, prepared_folder, tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert words in err and "model.name" in err and "SinkMonitor" not in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
