"""A run that was stopped and resumed is, bit by bit, the run that was not: losses, samples, random numbers, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import Ended, Ranks

from sinktrain.data.prepared import PreparedText
from sinktrain.training import load_checkpoint

EPOCH, STEPS = 48, 10
"""Samples of the text, and steps of 16 samples: an epoch has 3."""
STOPS = {"mid-epoch": [2], "epoch boundary": [3], "second epoch": [5], "twice": [2, 5], "step 1": [1]}


@pytest.fixture(scope="module")
def options(model_folder: Path, prepared_folder: Path) -> dict[str, Any]:
    tokens = len(PreparedText(prepared_folder).tokens("train"))
    length = tokens // EPOCH
    assert tokens // length == EPOCH
    return {"model": str(model_folder), "data": str(prepared_folder), "length": length + 1, "steps": STEPS}


def diary(folder: Path, ranks: int) -> list[list[dict[str, Any]]]:
    """What each rank wrote down, a list of steps."""
    files = [folder / f"steps-{rank}.jsonl" for rank in range(ranks)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def last_of_each_step(folder: Path, ranks: int) -> list[list[dict[str, Any]]]:
    """Steps that were made again after a kill count once: as they were made last."""
    by_step = [{entry["step"]: entry for entry in rank} for rank in diary(folder, ranks)]
    return [[rank[step] for step in sorted(rank)] for rank in by_step]


def finals(folder: Path, ranks: int) -> list[str]:
    return [(folder / f"final-{rank}.json").read_text() for rank in range(ranks)]


def check_same(one: Path, two: Path, ranks: int, steps: int = STEPS) -> None:
    """Every step once, with the same loss, samples and random numbers; the same end."""
    entries = last_of_each_step(one, ranks)
    assert [len(each) for each in entries] == [steps] * ranks
    assert entries == last_of_each_step(two, ranks)
    assert finals(one, ranks) == finals(two, ranks)
    samples = [sorted(s for each in entries for s in each[step]["samples"]) for step in range(steps)]
    size = len(samples[0])
    assert samples == [list(range(step * size, (step + 1) * size)) for step in range(steps)]


def good(done: Ended) -> None:
    assert set(done.statuses) == {0} and not done.left, done.out[-3000:]


def matrix(starter: Ranks, options: dict[str, Any], folder: Path, ranks: int, workers: int, accumulate: int) -> None:
    settings = {**options, "batch": 16 // (ranks * accumulate), "workers": workers, "accumulate": accumulate,
                "strategy": "ddp" if ranks > 1 else "auto"}  # fmt: skip
    good(starter.run("resume_run", {**settings, "out": str(folder / "whole")}, ranks))
    assert [len(each) for each in diary(folder / "whole", ranks)] == [STEPS] * ranks
    for name, stops in STOPS.items():
        out = folder / name
        for stop in (*stops, None):
            done = starter.run("resume_run", {**settings, "out": str(out), "stop": stop}, ranks)
            good(done)
        assert f"going on from {out / 'checkpoints' / f'step-{stops[-1]:09d}'}, step {stops[-1]}" in done.out
        assert [len(each) for each in diary(out, ranks)] == [STEPS] * ranks, name  # no step was made twice
        check_same(out, folder / "whole", ranks)


def test_resumed_runs_are_bit_equal(starter: Ranks, options: dict[str, Any], tmp_path: Path) -> None:
    matrix(starter, options, tmp_path, ranks=1, workers=0, accumulate=4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_resumed_runs_are_bit_equal_in_all_ways(
    starter: Ranks, options: dict[str, Any], tmp_path: Path, ranks: int, workers: int, accumulate: int
) -> None:
    matrix(starter, options, tmp_path, ranks, workers, accumulate)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp2-tensor2", "zero1", "zero2", "zero3", "zero3-offload"])
def test_every_strategy_resumes_bit_equal(
    starter: Ranks, options: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    settings = {**options, "batch": 8, "strategy": strategy, "dropout": 0.0, "steps": 5}
    good(starter.run("resume_run", {**settings, "out": str(tmp_path / "whole")}, 2))
    for stop in (2, None):
        good(starter.run("resume_run", {**settings, "out": str(tmp_path / "two"), "stop": stop}, 2))
    for rank in range(2):
        one, two = (last_of_each_step(tmp_path / name, 2)[rank] for name in ("whole", "two"))
        assert one == two and len(one) == 5
    assert finals(tmp_path / "whole", 2) == finals(tmp_path / "two", 2)


ROUTE = [("ddp", 2), ("fsdp2", 2), ("auto", 1), ("zero2", 2), ("fsdp2", 4), ("zero3", 2), ("ddp", 4), ("auto", 1)]


@pytest.mark.slow
def test_a_run_wanders_through_strategies_and_numbers_of_ranks(
    starter: Ranks, options: dict[str, Any], tmp_path: Path
) -> None:
    """One step under each; the same samples in the same steps, and the losses of one process that never stopped."""
    settings = {**options, "dropout": 0.0, "steps": len(ROUTE)}
    good(starter.run("resume_run", {**settings, "batch": 16, "every": 1, "out": str(tmp_path / "whole")}))
    losses, samples = [], []
    for stop, (strategy, ranks) in enumerate(ROUTE, start=1):
        now = {**settings, "batch": 16 // ranks, "strategy": strategy, "out": str(tmp_path / "route"), "stop": stop}
        good(starter.run("resume_run", now, ranks))
        entries = [each[-1] for each in diary(tmp_path / "route", ranks)]
        losses.append(float.fromhex(entries[0]["loss"]))
        samples.append(sorted(s for each in entries for s in each["samples"]))
    assert samples == [list(range(16 * n, 16 * n + 16)) for n in range(len(ROUTE))]
    expected = [float.fromhex(each["loss"]) for each in diary(tmp_path / "whole", 1)[0]]
    assert losses == pytest.approx(expected, abs=1e-5)
    # What each strategy has written is read as one model, without ranks.
    for step, (strategy, _) in enumerate(ROUTE, start=1):
        one, other = (
            load_checkpoint(tmp_path / name / "checkpoints" / f"step-{step:09d}") for name in ("route", "whole")
        )
        assert one.step == step
        for (name, weight), same in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(weight, same, atol=2e-5, rtol=1e-4, msg=f"{strategy}: {name}")
