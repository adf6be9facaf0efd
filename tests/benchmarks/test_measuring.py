"""What `sinktrain bench stream` times and weighs is what it says. Nothing here asserts how long it takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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
from sinktrain.streaming import CacheSpec

SIZE = 24
CPU = torch.device("cpu")


def some_tokens(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(2))


def decoder_of(method: str, model: PreTrainedModel, sinks: int = 2, compiled: bool = False) -> decoders.Decoder:
    return make_decoder(method, model, some_tokens(SIZE)[None], CacheSpec(sinks, SIZE - sinks), compiled=compiled)


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


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(module: Any, **options: Any) -> Callable[..., None]:
        def fail(**kwargs: Any) -> None:
            raise torch._dynamo.exc.BackendCompilerFailed(compile, RuntimeError("no g++"), None)

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(UserError, match=r"--compile true: .* leave it out"):
        decoder_of("static", tiny_model(), compiled=True)
