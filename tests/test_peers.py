"""The comparison with peers: its arithmetic, its material, and our own contestants on a tiny model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import some_text, tiny_model
from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModelForCausalLM

from sinktrain.base.errors import UserError
from sinktrain.streaming import CacheSpec, stream_nll

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from peers import run_ours  # noqa: E402
from peers.compare import compare, parse_contestants, text_length  # noqa: E402
from peers.contest import WARMUP, Contest  # noqa: E402
from peers.figures import difference, difference_table, speed_table, speeds  # noqa: E402
from peers.material import old_config, write_material  # noqa: E402

PEERS = Path(os.environ.get("PEERS_VENV", ROOT / ".venv-peers")) / "bin" / "python"
JOB: dict[str, Any] = {
    "sinks": 2,
    "recent": 30,
    "rule": "cache",
    "chunk": 16,
    "steps": 40,
    "warmup": WARMUP,
    "threads": 1,
    "device": "cpu",
    "timed": True,
}


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(some_text(400, seed=5))
    return path


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    runs = {
        "attention_sinks": [{"tokens": 10, "seconds": s} for s in (1, 2, 10)],  # 10, 5, 1 tokens/s
        "stream_nll": [{"tokens": n, "seconds": 1} for n in (100, 40, 30)],
    }
    found = speeds(runs)
    assert found["attention_sinks"]["tokens_per_second"] == 5
    assert found["stream_nll"]["tokens_per_second"] == 40
    assert found["stream_nll"]["ratios"] == {"attention_sinks": 10}  # of 10, 8 and 30
    assert found["attention_sinks"]["ratios"] == {"attention_sinks": 1}


def test_the_tables_hold_every_figure() -> None:
    found = speeds({"attention_sinks": [{"tokens": 10, "seconds": 1}], "SinkCache": [{"tokens": 25, "seconds": 1}]})
    lines = speed_table(found)
    assert len(lines) == 3 and "x attention_sinks" in lines[0] and "StaticCache" not in lines[0]
    assert lines[2].split()[-3:] == ["25.0", "2.50", "25.0"]
    lines = difference_table({"stream_nll, cache": {"largest": 2e-5, "mean": 4e-6, "tokens": 343}})
    assert lines[1].split()[-3:] == ["2e-05", "4e-06", "343"]


def test_a_difference_counts_from_the_first_token_to_the_end_of_the_shorter_text() -> None:
    ours, theirs = np.array([9.0, 1.0, 2.0, 3.0, 50.0]), np.array([0.0, 1.5, 2.0, 2.0])
    assert difference(ours, theirs, 1) == {"largest": 1.0, "mean": 0.5, "tokens": 3}
    with pytest.raises(ValueError, match="do not reach"):
        difference(ours, theirs, 4)


def test_the_text_is_long_enough_for_all() -> None:
    assert text_length(100, chunk=64, tokens=1000, steps=10) == 128 + 1000 + 1
    assert text_length(100, chunk=64, tokens=10, steps=500) == 100 + WARMUP + 500 + 1


def test_contestants_come_once_and_in_order() -> None:
    assert parse_contestants("SinkCache, attention_sinks SinkCache") == ["attention_sinks", "SinkCache"]
    for wrong in ("", "SinkCache Sinkcache"):
        with pytest.raises(UserError, match=r"--contestants .* choose from attention_sinks"):
            parse_contestants(wrong)


def test_the_old_config_means_the_same(tmp_path: Path) -> None:
    config = tiny_model("llama", rope_theta=5000.0, rms_norm_eps=1e-4).config
    old = old_config(config.to_dict(), "tiny")
    assert old["rope_theta"] == 5000.0 and old["torch_dtype"] == "float32"
    assert not {"rope_parameters", "dtype", "layer_types"} & set(old)
    (tmp_path / "config.json").write_text(json.dumps(old))
    again = AutoConfig.from_pretrained(tmp_path)
    for field in ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "head_dim", "tie_word_embeddings"):
        assert getattr(again, field) == getattr(config, field), field


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "qwen2"}, "is a qwen2 model"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, r"scales its positions \(llama3\)"),
        ({"head_dim": 16}, "head widths"),
        ({"mlp_bias": True}, "head widths or biases"),
    ],
)
def test_what_the_peer_would_run_as_another_model_is_refused(changes: dict[str, Any], reason: str) -> None:
    config = tiny_model("llama").config.to_dict()
    with pytest.raises(UserError, match=f"^--model tiny: .*{reason}.*; name a plain Llama"):
        old_config({**config, **changes}, "tiny")


def test_the_material_is_the_model_and_the_sinks_before_the_text(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write_material(str(model_folder), str(text_file), 200, work)
    without = np.load(work / "tokens.npy")
    assert len(without) == 200 and len(set(without.tolist())) > 10
    kept = AutoModelForCausalLM.from_pretrained(work / "model").state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(model_folder).state_dict().items():
        assert torch.equal(kept[name], weight), name

    monkeypatch.setattr("sinktrain.evaluation.subject.sink_ids_of", lambda tokenizer: [7, 8])
    record = write_material(str(model_folder), str(text_file), 200, work)
    assert np.load(work / "tokens.npy").tolist() == [7, 8, *without[:198].tolist()]
    assert record["text"]["tokens"] == 198


def test_our_contestants_time_a_full_cache_and_agree() -> None:
    model, size = tiny_model("llama"), JOB["sinks"] + JOB["recent"]
    tokens = torch.randint(0, 97, (150,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        evaluated = run_ours.evaluate_stream(model, tokens, JOB)
        decoded = run_ours.decode_stream(model, tokens, JOB)
        dense = run_ours.evaluate_dense(model, tokens, JOB)
        static = run_ours.decode_static(model, tokens, JOB)
    assert evaluated[0] == 149 - size  # the cache fills at the end of a chunk
    assert decoded[0] == JOB["steps"] and static[0] == size - WARMUP and dense[0] == 128
    expected = stream_nll(model, tokens, CacheSpec(2, 30), chunk=50)
    assert evaluated[2] is not None and decoded[2] is not None
    torch.testing.assert_close(evaluated[2], expected, atol=1e-3, rtol=0)
    assert len(decoded[2]) == size + WARMUP + JOB["steps"]
    torch.testing.assert_close(decoded[2], expected[: len(decoded[2])], atol=1e-3, rtol=0)


def test_a_run_leaves_figures_and_nlls_alone(
    model_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "peers"
    compare(str(model_folder), str(text_file), "2+30", "float32", 20, 20, 1, "stream_nll", chunk=16, threads=1, out=out)
    assert sorted(path.name for path in out.parent.rglob("*")) == ["nll.npz", "peers", "peers.json"]
    record = json.loads((out / "peers.json").read_text())
    assert record["speeds"]["float32"]["stream_nll"]["tokens_per_second"] > 0 and record["differences"] == {}
    nll = np.load(out / "nll.npz")
    assert len(nll["stream_nll float32"]) == len(nll["tokens"]) - 1
    assert "evaluating: stream_nll" in capsys.readouterr().out


def test_a_failed_contestant_is_told_in_a_sentence_and_leaves_nothing(
    model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "peers"
    options: dict[str, Any] = {"cache": "2+30", "contestants": "attention_sinks", "chunk": 16, "out": out}
    with pytest.raises(UserError, match=r"^--contestants attention_sinks: failed \(.*No module named"):
        compare(str(model_folder), str(text_file), peers_python=Path(sys.executable), tokens=20, steps=20, **options)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "1+7"}, "--cache 1\\+7: is too small"),
        ({"cache": "dense"}, "--cache dense: is too small"),
        ({"steps": 0}, "--steps 0: is below 1"),
        ({"threads": -1}, "--threads -1: is below 0"),
        ({"peers_python": Path("nowhere")}, "--peers_python nowhere: is not there; run scripts/bench_peers.sh"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        compare(**options)


def test_the_constraints_are_exact() -> None:
    lines = (ROOT / "scripts/peers/constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") and "+" not in str(pin.specifier) for pin in pins)
    versions = {pin.name: str(pin.specifier) for pin in pins}
    assert versions["attention_sinks"] == "==0.4.0" and versions["transformers"] == "==4.34.0"
    assert versions["numpy"].startswith("==1.") and "einops" in versions


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.is_file(), reason="scripts/bench_peers.sh makes the environment of attention_sinks")
def test_attention_sinks_agrees_on_a_tiny_model(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    settings = {**JOB, "model": str(tmp_path / "model"), "tokens": str(tmp_path / "tokens.npy"), "length": 100}
    write_material(str(model_folder), str(text_file), 100, tmp_path)
    contest = Contest(tmp_path, PEERS, settings)
    contest.run("attention_sinks", "float32")
    peer = contest.nll("attention_sinks", "float32")
    for label, changes, agrees in (("right", {}, True), ("short", {"recent": 29}, False)):
        contest.run("stream_nll", "float32", label, timed=False, **changes)
        gap = difference(contest.nll(label, "float32"), peer, 32)
        assert (gap["largest"] < 1e-2) == agrees, (label, gap)
