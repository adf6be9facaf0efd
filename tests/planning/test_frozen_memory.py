"""The arithmetic of `sink_only`: beside a formula written down by hand, and beside a run's peak in the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import measure_memory  # noqa: E402

JOB: dict[str, Any] = {
    "model": "40m", "mode": "sink_only", "layers": 4, "samples": 4, "length": 128, "precision": "32-true",
    "checkpointing": False, "accumulate": 1, "optimizer": "adamw",
}  # fmt: skip
D, F, KV, HEADS, ROWS = 512, 1408, 256, 8, 16_064
LAYER = 2 * D * D + 2 * D * KV + 3 * D * F + 2 * D


def parameters(layers: int) -> int:
    return 2 * ROWS * D + layers * LAYER + D


@pytest.mark.parametrize(("precision", "width"), [("32-true", 4), ("bf16-mixed", 4), ("bf16-true", 2)])
def test_weights_are_held_once_and_the_row_alone_is_trained(precision: str, width: int) -> None:
    found = measure_memory.planned({**JOB, "precision": precision})
    assert found.parameters == width * parameters(4) + 4 * D
    assert (found.gradients, found.optimizer) == (4 * D, 8 * D + 4)
    full = measure_memory.planned({**JOB, "precision": precision, "mode": "full"})
    assert full.gradients == width * parameters(4)
    assert full.optimizer == pytest.approx(2 * width * parameters(4), rel=1e-4)


def test_activations_are_those_that_the_gradient_of_states_needs() -> None:
    """A layer keeps its two norms' inputs with their inverse root mean squares; queries, keys, values, what attention
    gave and its log-sum-exp; gate, its silu and up. The end keeps the last norm's input and its output's gradient."""
    tokens = JOB["samples"] * JOB["length"]
    layer = 2 * (D + 1) + D + 2 * KV + D + HEADS + 3 * F
    by_hand = 4 * tokens * (4 * layer + D + 1 + D)
    found = measure_memory.planned(JOB)
    assert found.activations == pytest.approx(by_hand, rel=5e-3)
    deeper = measure_memory.planned({**JOB, "layers": 6}).activations - found.activations
    assert deeper == 2 * 4 * tokens * layer
    full = measure_memory.planned({**JOB, "mode": "full"}).activations
    # Weights' gradients want the inputs of products too: of q, k and v, of gate and up, of o, of down, and of norms.
    assert full > found.activations + 4 * tokens * 4 * (2 * D + F)
    assert measure_memory.planned({**JOB, "checkpointing": True}).activations < by_hand / 5


@pytest.mark.slow
def test_the_peak_is_that_of_a_run() -> None:
    script = str(ROOT / "scripts/measure_memory.py")
    command = [sys.executable, script, "--measure", json.dumps({**JOB, "layers": None, "samples": 8})]
    done = subprocess.run(
        command, cwd=ROOT, env=measure_memory.environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    plan = measure_memory.planned({**JOB, "layers": None, "samples": 8})
    assert {part: found[part] for part in ("parameters", "gradients", "optimizer")} == {
        "parameters": plan.parameters, "gradients": plan.gradients, "optimizer": plan.optimizer,
    }  # fmt: skip
    assert plan.total == pytest.approx(found["peak"], rel=0.1)
