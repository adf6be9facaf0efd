"""Learning rates over a run, against closed forms and the schedules of transformers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sinktrain.base.errors import UserError
from sinktrain.training import OptimizerConfig
from sinktrain.training.schedule import build_schedule, learning_rate_factor


def factors(steps: int, **fields: Any) -> list[float]:
    return [learning_rate_factor(step, OptimizerConfig(**fields), steps) for step in range(steps)]


def test_wsd_by_hand() -> None:
    found = factors(10, schedule="wsd", warmup_steps=2, decay_steps=4, final_fraction=0.2)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_linear_by_hand() -> None:
    found = factors(7, schedule="linear", warmup_steps=2, final_fraction=0.0)
    assert found == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0])


@given(
    st.sampled_from(["cosine", "linear", "wsd"]), st.integers(40, 300), st.floats(0, 0.4), st.floats(0.05, 0.5),
    st.floats(0, 1),
)  # fmt: skip
def test_every_schedule_rises_stays_and_falls(
    schedule: Any, steps: int, warmup: float, decay: float, final: float
) -> None:
    found = factors(steps, schedule=schedule, warmup_fraction=warmup, decay_fraction=decay, final_fraction=final)
    rise = round(warmup * steps)
    assert found[:rise] == pytest.approx([(step + 1) / rise for step in range(rise)])
    assert found[-1] == pytest.approx(final) and max(found) <= 1 + 1e-12
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found[rise:]))
    if schedule == "wsd":
        assert found[rise : steps - round(decay * steps)] == [1.0] * (steps - round(decay * steps) - rise)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_against_transformers(schedule: str) -> None:
    """The same curves; theirs end one step later and begin their warm-up at zero."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
    theirs = make(optimizer, num_warmup_steps=5, num_training_steps=24).lr_lambdas[0]
    ours = factors(25, schedule=schedule, warmup_steps=5, final_fraction=0.0)
    assert ours[4:] == pytest.approx([1.0] + [theirs(step) for step in range(5, 25)])
    assert ours[:5] == pytest.approx([theirs(step) for step in range(1, 6)])


def test_every_group_gets_its_learning_rate() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in parameters], lr=0.5)
    schedule = build_schedule(optimizer, OptimizerConfig(warmup_steps=0, final_fraction=0.0), 5)
    for step in range(5):
        wanted = 0.5 * 0.5 * (1 + math.cos(math.pi * step / 4))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([wanted] * 2)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("fields", "steps", "words"), [
    ({}, 0, r"trainer\.max_steps"), ({"warmup_steps": 5}, 5, r"warmup_steps 5"),
    ({"schedule": "wsd", "warmup_steps": 6, "decay_steps": 5}, 10, r"decay_steps 5: .*give 4 or fewer"),
    ({"warmup_fraction": 1.0}, 5, r"warmup_steps 5")])  # fmt: skip
def test_what_does_not_fit_is_refused(fields: dict[str, Any], steps: int, words: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match=words):
        build_schedule(optimizer, OptimizerConfig(**fields), steps)
