"""`sinktrain bench stream`: what it measures is what it says it measures. Nothing here asserts how long it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.benchmarks import decoders, throughput, timing
from sinktrain.benchmarks.decoders import METHODS, make_decoder
from sinktrain.benchmarks.figure import LABELS, draw
from sinktrain.benchmarks.stream import bench_stream, parse_methods, parse_sizes
from sinktrain.benchmarks.summary import decoding_ratios, decoding_summary, evaluation_summary, paper_ratio
from sinktrain.evaluation.subject import ModelOptions
from sinktrain.streaming import CacheSpec

SIZE = 24
CPU = torch.device("cpu")
FAST: dict[str, Any] = {"seconds": 0.0, "rounds": 2, "tokens": 3, "chunk": 16}


def some_tokens(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(2))


def decoder_of(method: str, model: PreTrainedModel, sinks: int = 2, compiled: bool = False) -> decoders.Decoder:
    return make_decoder(method, model, some_tokens(SIZE)[None], CacheSpec(sinks, SIZE - sinks), compiled=compiled)


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


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize(("method", "visible"), [("streaming", 1), ("static", 1), ("dense", 1), ("recompute", 0)])
def test_every_timed_token_sees_c_positions_and_itself(
    family: str, method: str, visible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    decoder = decoder_of(method, model)
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watching(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        rows = torch.zeros(1, key.shape[2]) if attn_mask is None else attn_mask[0, 0, -1:]
        seen.append(int(rows.sum()) if rows.dtype == torch.bool else int((rows == 0).sum()))
        return attend(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watching)
    assert len(decoder.turn(4)) == 4
    assert seen == [SIZE + visible] * 4 * model.config.num_hidden_layers


def test_streaming_has_a_full_cache_that_goes_on_evicting() -> None:
    decoder = decoder_of("streaming", tiny_model())
    before = decoder.evicted
    decoder.turn(5)
    assert before > 0
    assert decoder.evicted == before + 5


@pytest.mark.parametrize("method", ["static", "dense"])
def test_others_go_back_to_c_tokens(method: str) -> None:
    decoder = decoder_of(method, tiny_model())
    decoder.turn(3)
    assert decoder.cache is not None
    assert int(decoder.cache.get_seq_length()) == SIZE
    assert decoder.evicted == 0


def test_layers_with_a_window_of_their_own_keep_that_window() -> None:
    model = tiny_model("mistral", sliding_window=8)
    for method in METHODS:
        decoder = decoder_of(method, model)
        bytes_before = decoder.cache_bytes
        assert len(decoder.turn(10)) == 10
        assert decoder.cache_bytes == bytes_before


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sinks", [0, 1, 4])
def test_cache_bytes_are_those_of_the_shapes(sinks: int, dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype)
    row = 3 * 2 * 8 * dtype.itemsize  # layers, key-value heads, width of a head: a key, or a value, of one token
    expected = {
        "streaming": 2 * (SIZE + 1) * row + (sinks + 1) * row,  # and the sinks' keys once more, with a spare row
        "static": 2 * (SIZE + 1) * row,
        "dense": 2 * SIZE * row,
        "recompute": 0,
    }
    assert {method: decoder_of(method, model, sinks).cache_bytes for method in METHODS} == expected


def test_working_bytes_are_the_peak_and_not_the_sum() -> None:
    def run() -> None:
        first, second = torch.empty(1000), torch.empty(500)
        del first
        torch.empty(400)
        del second

    assert timing.working_bytes(run, CPU) == 1500 * 4


def test_working_bytes_leave_out_what_was_held_before() -> None:
    held = SimpleNamespace(tensor=torch.zeros(1000))

    def replace() -> None:
        held.tensor = torch.cat((held.tensor,))

    assert timing.working_bytes(replace, CPU) == 1000 * 4
    held.tensor = torch.zeros(1000)
    assert timing.working_bytes(lambda: held.tensor.add_(1), CPU) < 100


def test_working_bytes_leave_stderr_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    timing.working_bytes(lambda: torch.empty(1), CPU)
    with pytest.raises(ZeroDivisionError):
        timing.working_bytes(lambda: 1 / 0, CPU)
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_recompute_needs_more_working_memory_than_streaming() -> None:
    model = tiny_model()
    needs = {method: decoder_of(method, model).working_bytes() for method in METHODS}
    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    assert needs["recompute"] > SIZE * inner * 4  # at least the widest activation of the window
    assert 0 < needs["streaming"] < SIZE * hidden * 4


# Turns and clocks


@given(rounds=st.integers(1, 5), names=st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
def test_turns_alternate(rounds: int, names: list[str]) -> None:
    order: list[str] = []

    def turn(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)

    found = timing.in_turns({name: turn(name) for name in names}, seconds=0, rounds=rounds)
    assert order == names * rounds
    assert all(found[name] == [n + 1 for n, done in enumerate(order) if done == name] for name in names)


def test_turns_go_on_until_the_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100]

    def turn() -> int:
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert timing.in_turns({"a": turn}, seconds=7, rounds=2)["a"] == list(range(101, 108))
    assert timing.in_turns({"a": turn}, seconds=1, rounds=2)["a"] == [108, 109]


@pytest.mark.parametrize(("size", "chunk"), [(16, 16), (16, 5), (16, 50), (7, 16), (33, 16)])
def test_evaluation_times_the_tokens_that_it_counts(size: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the tokens that the model has run, seconds must be the tokens of the turn."""
    model, run, longest = tiny_model(), [0], [0]

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        run[0] += kwargs["input_ids"].numel()
        longest[0] = max(longest[0], kwargs["input_ids"].shape[1])

    monkeypatch.setattr(timing, "now", lambda device: run[0])
    monkeypatch.setattr(throughput, "now", lambda device: run[0])
    tokens = some_tokens(throughput.tokens_needed(size, chunk))
    model.register_forward_pre_hook(count, with_kwargs=True)
    found = throughput.evaluation_seconds(model, CacheSpec(1, size - 1), tokens, chunk=chunk, seconds=0, rounds=2)
    for each in found.values():
        assert each["seconds"] == [each["tokens"]] * 2
    assert found["stream"]["tokens"] >= max(size, chunk)
    assert found["stream"]["tokens"] % chunk == 0
    assert found["dense"]["tokens"] == size * max(1, chunk // size)
    assert longest[0] == max(size, chunk)


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


def test_compile_is_for_streaming_and_static_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = tiny_model(), []

    def compile(module: PreTrainedModel, **options: Any) -> PreTrainedModel:
        compiled.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    counts = []
    for method in METHODS:
        decoder_of(method, model, compiled=True).turn(1)
        counts.append(len(compiled))
    assert counts == [1, 2, 2, 2]
    assert compiled == [{"dynamic": False}] * 2
    decoder_of("streaming", model)
    assert len(compiled) == 2


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


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(module: Any, **options: Any) -> Callable[..., None]:
        def fail(**kwargs: Any) -> None:
            raise torch._dynamo.exc.BackendCompilerFailed(compile, RuntimeError("no g++"), None)

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(UserError, match=r"--compile true: .* leave it out"):
        decoder_of("static", tiny_model(), compiled=True)


@given(st.sets(st.integers(3, 5000), min_size=1, max_size=6), st.sampled_from([" ", ", ", ","]))
def test_sizes_are_read_in_any_order(sizes: set[int], between: str) -> None:
    specs = parse_sizes(between.join(str(size) for size in sorted(sizes, reverse=True)), sinks=2)
    assert [spec.size for spec in specs] == sorted(sizes)
    assert {spec.sinks for spec in specs} == {2}


def test_methods_are_read_in_any_order() -> None:
    assert parse_methods("recompute,streaming") == ("streaming", "recompute")
