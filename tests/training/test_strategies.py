"""Every strategy, with real processes and gloo, trains as one process does, to the sink's row and validation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from forking import Ranks

STEPS = 20
LOGIT = {"sink": {"kind": "logit"}, "bad_step": 7, "packing": "document", "gradient_checkpointing": True}


def run(
    starter: Ranks, folder: Path, strategy: str, ranks: int, batch: int, accumulate: int, **options: Any
) -> list[dict[str, Any]]:
    """What each rank found."""
    settings = {"strategy": strategy, "batch": batch, "accumulate": accumulate, "steps": STEPS, "out": str(folder)}
    done = starter.run("strategy_run", {**settings, **options}, ranks, timeout=240)
    assert done.statuses == [0] * ranks, done.out[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def text(model_folder: Path, prepared_folder: Path) -> dict[str, str]:
    return {"model": str(model_folder), "data": str(prepared_folder)}


@pytest.fixture(scope="module")
def alone(starter: Ranks, text: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process."""
    return run(starter, tmp_path_factory.mktemp("alone") / "run", "auto", 1, 4, 1, **text)[0]


def check_equal(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Float32 sums in another order, over 20 steps; the learning rate is 3e-3, so that a wrong factor would show."""
    assert len(expected["losses"]) == STEPS and expected["losses"][-1] < expected["losses"][0] - 1
    finite = [i for i, norm in enumerate(expected["norms"]) if norm < float("inf")]
    for each in found:
        assert each["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert [each["norms"][i] for i in finite] == pytest.approx([expected["norms"][i] for i in finite], rel=1e-4)
        assert each["sink"] == pytest.approx(expected["sink"], abs=1e-6)
        assert each["weights"] == pytest.approx(expected["weights"], rel=1e-6)
        assert each["validation"] == pytest.approx(expected["validation"], abs=1e-5)
        assert each["skipped"] == expected["skipped"]
        assert each["sink"] == found[0]["sink"]
    samples = [sorted(s for each in found for s in each["samples"][step]) for step in range(STEPS)]
    assert [sorted(set(step)) for step in samples] == [list(range(4 * n, 4 * n + 4)) for n in range(STEPS)]


FAST = [("fsdp2", 2, 1, 2), ("zero3", 2, 1, 2)]
SLOW = [
    ("ddp", 2, 2, 1), ("zero1", 2, 2, 1), ("zero2", 2, 1, 2), ("fsdp2-tensor2", 2, 4, 1), ("zero1-offload", 2, 1, 2),
    ("zero2-offload", 2, 2, 1), ("zero3-offload", 2, 2, 1), ("fsdp2", 1, 4, 1), ("zero1", 1, 2, 2), ("zero2", 1, 4, 1),
    ("zero3", 1, 4, 1), ("ddp", 4, 1, 1), ("fsdp2", 4, 1, 1), ("fsdp2-tensor2", 4, 1, 2), ("zero1", 4, 1, 1),
    ("zero2", 4, 1, 1), ("zero3", 4, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "ranks", "batch", "accumulate"),
    [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)],
)
def test_a_strategy_trains_as_one_process(
    strategy: str, ranks: int, batch: int, accumulate: int, starter: Ranks, text: dict[str, str],
    alone: dict[str, Any], tmp_path: Path,
) -> None:  # fmt: skip
    check_equal(run(starter, tmp_path / "run", strategy, ranks, batch, accumulate, **text), alone)


@pytest.fixture(scope="module")
def alone_logit(starter: Ranks, text: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process with sink logits, packed documents, recomputed activations, and a gradient that is not a number."""
    return run(starter, tmp_path_factory.mktemp("logit") / "run", "auto", 1, 4, 1, **text, **LOGIT)[0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3-offload"])
def test_a_bad_gradient_on_one_rank_is_left_out_by_all(
    strategy: str, starter: Ranks, text: dict[str, str], alone_logit: dict[str, Any], tmp_path: Path
) -> None:
    found = run(starter, tmp_path / "run", strategy, 2, 1, 2, **text, **LOGIT)
    assert alone_logit["skipped"] == 1
    check_equal(found, alone_logit)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("kind", ["token", "kv"])
def test_bfloat16(strategy: str, kind: str, starter: Ranks, text: dict[str, str], tmp_path: Path) -> None:
    """Not equal, but near: three digits of a weight, over 20 steps."""
    sink = {"kind": kind, **({"count": 2} if kind == "token" else {})}
    options = {**text, "precision": "bf16-mixed", "sink": sink}
    one, *two = (run(starter, tmp_path / name, name, ranks, batch, 1, **options)[0]
                 for name, ranks, batch in (("auto", 1, 4), (strategy, 2, 2)))  # fmt: skip
    assert two[0]["losses"] == pytest.approx(one["losses"], abs=0.05)


TUNED = [("sink_only", "ddp"), ("sink_only", "fsdp2"), ("lora", "fsdp2"), ("sink_only", "zero3")]
TUNED_SLOW = itertools.product(["sink_only", "lora", "embed", "full"], ["ddp", "fsdp2", "zero1", "zero2", "zero3"])


@pytest.mark.parametrize(
    ("mode", "strategy"), [*TUNED, *(pytest.param(*x, marks=pytest.mark.slow) for x in TUNED_SLOW if x not in TUNED)]
)
def test_a_strategy_tunes_as_one_process(
    mode: str, strategy: str, starter: Ranks, text: dict[str, str], tmp_path: Path
) -> None:
    """With half of the objective from the model as it was, in packed documents."""
    tuning = {"mode": mode, "distill": 0.5}
    options = {**text, "tuning": tuning, "optimizer": {"learning_rate": 1e-2}, "packing": "document"}
    alone, *found = (
        each
        for name, ranks, batch in (("auto", 1, 4), (strategy, 2, 2))
        for each in run(starter, tmp_path / name, name, ranks, batch, 1, **options)
    )
    start = alone["losses"][0]
    assert min(alone["losses"]) < start
    for each in found:
        assert each["losses"] == pytest.approx(alone["losses"], abs=2e-5)
        assert each["sink"] == pytest.approx(alone["sink"], abs=2e-5) == found[0]["sink"]
        assert each["validation"] == pytest.approx(alone["validation"], abs=2e-5)
        assert each["weights"] == pytest.approx(alone["weights"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2-tensor2", "zero3"])
def test_before_and_after_are_those_of_one_process(
    strategy: str, starter: Ranks, text: dict[str, str], tmp_path: Path
) -> None:
    """Every run of `sinktrain fit` measures a pretrained model, however it is spread."""
    own = run(starter, tmp_path / "alone", "auto", 1, 4, 1, **text, measured=90)[0]
    batch = 4 if "tensor" in strategy else 2
    for found in run(starter, tmp_path / "run", strategy, 2, batch, 1, **text, measured=90):
        assert found["before"] == pytest.approx(own["before"], rel=1e-4) and len(found["before"]) == 2
        assert found["after"] == pytest.approx(own["after"], rel=1e-3)
