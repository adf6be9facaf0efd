"""`sinktrain bench stream`: what it measures is what it says it measures. Nothing here asserts how long it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinktrain.base.errors import UserError
from sinktrain.benchmarks.decoders import METHODS
from sinktrain.benchmarks.figure import LABELS, draw
from sinktrain.benchmarks.stream import bench_stream, parse_methods, parse_sizes
from sinktrain.benchmarks.summary import decoding_ratios, decoding_summary, evaluation_summary, paper_ratio
from sinktrain.evaluation.subject import ModelOptions

FAST: dict[str, Any] = {"seconds": 0.0, "rounds": 2, "tokens": 3, "chunk": 16}


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verb writes for the tiny model at C = 16 and 256."""
    out = tmp_path_factory.mktemp("bench") / "out"
    record = bench_stream(ModelOptions(str(model_folder), device="cpu"), out, sizes="256, 16", sinks=2, **FAST)
    assert json.loads((out / "stream.json").read_text()) == json.loads(json.dumps(record))
    return out


@pytest.fixture
def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stream.json").read_text())
    return found


# What a timed token sees


# Arithmetic

MILLISECONDS = st.floats(0.01, 1e5)


@given(st.lists(st.lists(MILLISECONDS, min_size=1, max_size=5), min_size=2, max_size=5))
def test_medians_and_quartiles(turns: list[list[float]]) -> None:
    flat = np.concatenate(turns)
    found = decoding_summary(turns)
    assert found["median_ms"] == pytest.approx(np.median(flat))
    assert found["quartiles_ms"] == pytest.approx(np.quantile(flat, [0.25, 0.75]).tolist())
    assert found["ms"] == turns


def test_ratios_are_those_of_the_methods_measured() -> None:
    methods = {name: {"median_ms": ms} for name, ms in zip(METHODS, (2.0, 3.0, 5.0, 80.0), strict=True)}
    expected = {"recompute/streaming": 40.0, "dense/streaming": 2.5, "static/streaming": 1.5}
    assert decoding_ratios(methods) == expected
    del methods["dense"]
    assert "dense/streaming" not in decoding_ratios(methods)
    assert decoding_ratios({"static": {"median_ms": 1.0}}) == {}
    assert paper_ratio(4096) == pytest.approx(1411 / 65)
    assert paper_ratio(100) is None


def test_evaluation_ratios() -> None:
    found = {"stream": {"tokens": 60, "seconds": [1.0, 2.0, 6.0]}, "dense": {"tokens": 80, "seconds": [2.0, 1.0, 9.0]}}
    summary = evaluation_summary(found, 200.0)
    speeds = {name: each["median_tokens_per_second"] for name, each in summary["methods"].items()}
    assert speeds == {"stream": 30.0, "dense": 40.0, "token by token": 5.0}
    assert summary["ratios"] == {"stream/dense": 0.75, "stream/token by token": 6.0}
    assert "token by token" not in evaluation_summary(found, None)["methods"]


# The verb


def test_record_has_every_raw_timing_and_what_follows_from_it(record: dict[str, Any]) -> None:
    assert record["schema"] == 1
    assert [row["size"] for row in record["decoding"]] == [16, 256]
    assert [row["cache"] for row in record["decoding"]] == [row["cache"] for row in record["evaluation"]]
    for row in record["decoding"]:
        medians = {}
        assert list(row["methods"]) == list(METHODS)
        for name, found in row["methods"].items():
            assert [len(turn) for turn in found["ms"]] == [1 if name == "recompute" else 3] * 2
            assert all(ms > 0 for turn in found["ms"] for ms in turn)
            medians[name] = np.median(np.concatenate(found["ms"]))
            assert found["median_ms"] == pytest.approx(medians[name])
            assert (found["evicted"] > 0) == (name == "streaming")
        for name, ratio in row["ratios"].items():
            assert ratio == pytest.approx(medians[name.partition("/")[0]] / medians["streaming"])
        assert len(row["ratios"]) == 3
    for row in record["evaluation"]:
        stream, dense = row["methods"]["stream"], row["methods"]["dense"]
        speeds = [each["tokens"] / np.median(each["seconds"]) for each in (stream, dense)]
        assert row["ratios"]["stream/dense"] == pytest.approx(speeds[0] / speeds[1])


def test_record_says_what_is_needed_to_repeat_it(record: dict[str, Any]) -> None:
    assert {"torch", "transformers", "cores"} <= set(record["environment"])
    assert record["machine"]["device"] == "cpu"
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["settings"]["rounds"] == 2
    assert record["weights_bytes"] == record["model"]["parameters"] * 4
    assert record["peak_bytes"] > record["weights_bytes"]
    assert record["paper"]["recompute"]["4096"] == 1411
    assert [row["paper_recompute/streaming"] for row in record["decoding"]] == [None, pytest.approx(63 / 31)]


def test_figure_shows_every_method_at_every_size(folder: Path, record: dict[str, Any]) -> None:
    latency, memory = draw(record).axes
    rows = record["decoding"]
    for axes, value in ((latency, lambda f: f["median_ms"]), (memory, lambda f: f["cache_bytes"] + f["working_bytes"])):
        lines = {str(line.get_label()): line for line in axes.lines}
        assert set(lines) == set(LABELS.values())
        for method, label in LABELS.items():
            expected = np.array([value(row["methods"][method]) for row in rows], dtype=float)
            drawn = np.asarray(lines[label].get_ydata(), dtype=float) * (1 if axes is latency else 2**20)
            assert drawn == pytest.approx(expected)
            assert list(lines[label].get_xdata()) == [16, 256]
    assert {line.get_marker() for line in latency.lines} == {"o", "s", "^", "D"}  # told apart without colour too
    svg = (folder / "stream.svg").read_text()
    ratio = rows[1]["ratios"]["recompute/streaming"]
    assert all(text in svg for text in [*LABELS.values(), f"{ratio:.1f}x", "2.0x at 256", "float32"])
    assert (folder / "stream.png").read_bytes()[1:4] == b"PNG"


def test_some_methods_and_no_evaluation(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ModelOptions(str(model_folder), device="cpu")
    record = bench_stream(options, sizes="16", methods="recompute static", evaluation=False, **FAST)
    assert list(record["decoding"][0]["methods"]) == ["static", "recompute"]
    assert record["evaluation"] == []
    assert len(draw(record).axes[0].lines) == 2
    out = capsys.readouterr().out
    assert "1+15  static" in out and "1+15  recompute" in out
    assert "ratios" not in out and "results:" not in out


def test_table_has_the_figures_of_the_record(
    model_folder: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    record = bench_stream(ModelOptions(str(model_folder), device="cpu"), sizes="16 520", **FAST)
    out = capsys.readouterr().out
    assert "warning: the cache holds 520 positions, the model was trained for 512" in out
    assert not [warning for warning in recwarn if "positions" in str(warning.message)]  # said once is enough
    lines = out.splitlines()
    for row in record["decoding"]:
        for name, found in row["methods"].items():
            line = next(line for line in lines if line.split()[:2] == [row["cache"], name])
            assert line.split()[2] == f"{found['median_ms']:.2f}"
        assert any(line.split()[:2] == [row["cache"], f"{row['ratios']['recompute/streaming']:.2f}"] for line in lines)
    for row in record["evaluation"]:
        speed = row["methods"]["stream"]["median_tokens_per_second"]
        assert any(line.split()[:2] == [row["cache"], f"{speed:.1f}"] for line in lines)


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sizes": "many"}, "--sizes 'many': is no list"),
        ({"sizes": ""}, "--sizes '': is no list"),
        ({"sizes": "8 8"}, "--sizes '8 8': is no list of different"),
        ({"sizes": "64 4", "sinks": 4}, "--sizes 4: has no room for --sinks 4"),
        ({"sizes": "-3"}, "--sizes -3: has no room"),
        ({"sinks": -1}, "--sinks -1: is below 0"),
        ({"methods": "fast"}, "--methods 'fast': is no list of methods"),
        ({"rounds": 1}, "--rounds 1: is below 2"),
        ({"tokens": 0}, "--tokens 0: is below 1"),
        ({"seconds": -1.0}, "--seconds -1.0: is below 0"),
        ({"chunk": 0}, "--chunk 0: is below 2"),
        ({"seed": -1}, "--seed -1: is below 0"),
        ({}, "nowhere/at/all: no such folder"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        bench_stream(ModelOptions("nowhere/at/all"), tmp_path / "out", **options)
    assert said in str(error.value)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays_as_it_is_unless_told_otherwise(folder: Path, model_folder: Path) -> None:
    options, before = ModelOptions(str(model_folder), device="cpu"), (folder / "stream.json").read_text()
    with pytest.raises(UserError, match=r"--out .*: exists already"):
        bench_stream(options, folder, sizes="8", **FAST)
    assert (folder / "stream.json").read_text() == before


@given(st.sets(st.integers(3, 5000), min_size=1, max_size=6), st.sampled_from([" ", ", ", ","]))
def test_sizes_are_read_in_any_order(sizes: set[int], between: str) -> None:
    specs = parse_sizes(between.join(str(size) for size in sorted(sizes, reverse=True)), sinks=2)
    assert [spec.size for spec in specs] == sorted(sizes)
    assert {spec.sinks for spec in specs} == {2}


def test_methods_are_read_in_any_order() -> None:
    assert parse_methods("recompute,streaming") == ("streaming", "recompute")
