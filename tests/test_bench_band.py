"""The benchmark of the band compares like with like."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bench_band

JOB = {"width": 64, "layers": 2, "device": "cpu", "precision": "32", "threads": 1, "rounds": 2, "memory": False}


def test_the_ways_train_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A band that hides nothing has the loss of full attention; one that hides something has not."""
    monkeypatch.setattr(bench_band, "keep_memory", lambda: None)
    threads = torch.get_num_threads()
    found = bench_band.measure({**JOB, "length": 40, "ways": ["full", "1+63", "1+7"]})
    torch.set_num_threads(threads)
    losses, seconds = found["losses"], found["seconds"]
    assert losses["1+63"] == pytest.approx(losses["full"], abs=1e-5)
    assert abs(losses["1+7"] - losses["full"]) > 1e-5
    assert [len(seconds[way]) for way in ("full", "1+63", "1+7")] == [2, 2, 2]


def test_ratios_are_of_the_same_round() -> None:
    seconds = {"full": [2.0, 40.0, 3.0], "1+7": [1.0, 10.0, 2.0]}
    lines = bench_band.rows(40, seconds, {"full": 2**20, "1+7": 2**19}, {"full": 8.0, "1+7": 7.0})
    assert lines[0].split() == ["40", "full", "attention", "3.000", "1.00", "1", "1.00", "8.0000"]
    assert lines[1].split() == ["40", "band", "1+7", "2.000", "2.00", "0", "0.50", "7.0000"]
