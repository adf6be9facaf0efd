"""Non-finite steps and spikes: judged right, left out without a trace, counted, named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_training import Recorder, flat, make, trainer
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.guards import REASONS, GuardConfig, Spikes, StepGuard

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


def spikes_by_numpy(losses: Sequence[float], norms: Sequence[float], sigma: float, window: int) -> list[bool]:
    """The definition, over lists that grow."""
    past: list[tuple[float, float]] = []
    found = []
    for new in zip(losses, norms, strict=True):
        held = np.array(past[-window:], dtype=np.float64)
        if not np.isfinite(new).all():
            found.append(False)
            continue
        enough = len(held) >= max(20, window // 2)
        found.append(enough and bool((np.array(new) > held.mean(0) + sigma * held.std(0, ddof=1)).any()))
        past.append(new)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([20, 25, 64]), st.sampled_from([2.0, 3.0, 6.0]),
    st.dictionaries(st.integers(0, 149), st.sampled_from([3.0, 10.0, -10.0, NAN, INF]), max_size=12),
    st.booleans(),
)  # fmt: skip
@example(0, 64, 3.0, {25: 10.0, 40: 10.0}, False)  # before half the window, and after it
@example(0, 20, 3.0, {60: NAN, 61: 10.0, 90: INF, 91: 10.0}, True)  # a spike right after a value that is none
def test_spikes_against_numpy(seed: int, window: int, sigma: float, jumps: dict[int, float], of_norms: bool) -> None:
    generator = np.random.default_rng(seed)
    # float32 values, so that both see the same numbers
    series = (generator.normal(4, 0.5, (2, 150)) - np.linspace(0, 1, 150)).astype(np.float32)
    for place, jump in jumps.items():
        series[int(of_norms), place] += np.float32(jump)
    spikes = Spikes(sigma, window, CPU)
    found = [bool(spikes.add(*pair)) for pair in torch.from_numpy(series).unbind(1)]
    expected = spikes_by_numpy(*series.astype(np.float64).tolist(), sigma, window)
    assert len(found) == 150 and found == expected


def test_a_spike_is_found_and_a_fall_is_welcome() -> None:
    guard = StepGuard(GuardConfig(spike_sigma=6), CPU)
    noise = torch.randn(70, generator=torch.Generator().manual_seed(0)) * 0.1
    verdicts = [float(guard.judge(step, 3 + noise[step], torch.tensor(1.0) + noise[-step])) for step in range(69)]
    assert verdicts == [0.0] * 69
    assert float(guard.judge(69, torch.tensor(1.0), torch.tensor(1.0))) == 0
    assert float(guard.judge(70, torch.tensor(9.0), torch.tensor(1.0))) == 1
    assert float(guard.judge(71, torch.tensor(3.0), torch.tensor(9.0))) == 1
    assert int(guard.skipped) == 2
    assert guard.read() == [f"step {step} (a loss spike, samples unknown)" for step in (70, 71)]


def test_a_new_level_is_accepted_after_four_steps() -> None:
    spikes = Spikes(6, 128, CPU)
    noise = 0.01 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    levels = torch.cat((torch.full((150,), 3.0), torch.full((50,), 5.0))) + noise
    found = [bool(spikes.add(level, torch.tensor(1.0))) for level in levels]
    assert [step for step, each in enumerate(found) if each] == [150, 151, 152, 153]


@pytest.mark.parametrize(("loss", "norm", "reason"), [
    (1.0, 1.0, 0), (NAN, 1.0, 1), (-INF, NAN, 1), (1.0, INF, 2), (1.0, NAN, 2)])  # fmt: skip
def test_what_is_left_out(loss: float, norm: float, reason: int) -> None:
    guard = StepGuard(GuardConfig(), CPU)
    guard.watch(torch.tensor([7, 4]))
    guard.watch(torch.tensor([5, 12]))
    verdict = guard.judge(3, torch.tensor(loss), torch.tensor(norm))
    assert verdict.dtype == torch.float32 and float(verdict) == float(reason > 0) == float(guard.skipped)
    assert guard.read() == ([f"step 3 ({REASONS[reason]}, samples 4-5, 7, 12)"] if reason else [])
    assert guard.read() == []


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4), st.integers(1, 7))
def test_stops_after_so_many_in_a_row(bad: list[bool], stop_after: int, every: int) -> None:
    """At the first reading after the run of bad steps is complete, however it lies between readings."""
    text = "".join("x" if each else "." for each in bad)
    last = text.find("x" * stop_after) + stop_after - 1 if "x" * stop_after in text else None
    guard = StepGuard(GuardConfig(stop_after=stop_after), CPU)
    stopped = None
    for step, each in enumerate(bad):
        guard.watch(torch.tensor([step]))
        guard.judge(step, torch.tensor(NAN if each else 1.0), torch.tensor(1.0))
        if step % every == every - 1 or step == len(bad) - 1:
            try:
                guard.read()
            except UserError as error:
                stopped = step
                first = last - stop_after + 1  # type: ignore[operator]
                assert f"guard.stop_after {stop_after}:" in str(error)
                assert all(f"step {n} (a non-finite loss, samples {n})" in str(error) for n in range(first, last + 1))
                break
    assert (stopped is None) == (last is None)
    if stopped is not None:
        assert last is not None and last <= stopped < last + every


def test_state_goes_on() -> None:
    series = 3 + 0.1 * torch.randn(90, generator=torch.Generator().manual_seed(1))
    series[80:83] = torch.tensor([9.0, NAN, 12.0])
    norm = torch.tensor(1.0)
    whole = StepGuard(GuardConfig(spike_sigma=6), CPU)
    cut: StepGuard = StepGuard(GuardConfig(spike_sigma=6), CPU)
    found = []
    for step, loss in enumerate(series):
        if step in (70, 81):
            state, cut = cut.state_dict(), StepGuard(GuardConfig(spike_sigma=6), CPU)
            cut.load_state_dict(state)
        pair = [float(guard.judge(step, loss, norm)) for guard in (whole, cut)]
        assert pair[0] == pair[1]
        found.append(pair[0])
    assert sum(found) >= 2 and found[80:82] == [1, 1]
    assert int(whole.skipped) == int(cut.skipped) == sum(found)


@pytest.mark.parametrize(("fields", "words"), [
    ({"stop_after": 0}, r"guard\.stop_after"), ({"spike_sigma": 0}, r"guard\.spike_sigma"),
    ({"spike_window": 3}, r"guard\.spike_window")])  # fmt: skip
def test_bad_options_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        GuardConfig(**fields)


class Poisoned(SinkModule):
    """A model whose loss, or whose gradient alone, is not finite for some samples."""

    def poison(self, where: str, samples: set[int]) -> Poisoned:
        self.where, self.poisoned = where, torch.tensor(sorted(samples))
        return self

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        objective, nll, tokens = super().losses(batch)
        if torch.isin(batch["samples"], self.poisoned).any():
            if self.where == "loss":
                return objective * NAN, nll * NAN, tokens
            objective.register_hook(lambda gradient: gradient * INF)
        return objective, nll, tokens


def batches(model_folder: Path, count: int) -> list[dict[str, Tensor]]:
    sink = make(model_folder).sink_ids[0]
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        ids = torch.randint(1, 90, (2, 17), generator=generator)
        ids[:, 0] = sink
        labels = ids.clone()
        labels[:, 0] = -100
        samples = torch.tensor([2 * number, 2 * number + 1])
        found.append({"input_ids": ids, "labels": labels, "samples": samples})
    return found


def poisoned_run(
    model_folder: Path, folder: Path, data: list[dict[str, Tensor]], where: str, samples: set[int], **fields: Any
) -> tuple[SinkModule, Any, Recorder]:
    settings = {"guard": fields.pop("guard", GuardConfig()), "optimizer": fields.pop("optimizer")}
    module = Poisoned(name=str(model_folder), **settings).poison(where, samples)
    recorder = Recorder()
    steps = len(data) // fields.get("accumulate_grad_batches", 1)
    fit = trainer(folder, steps, callbacks=[recorder], gradient_clip_val=1.0, **fields)
    fit.fit(module, torch.utils.data.DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return module, fit, recorder


def state_of(fit: Any) -> list[Tensor]:
    return [value for values in fit.optimizers[0].state_dict()["state"].values() for value in values.values()]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_is_as_if_it_had_not_been(name: Any, where: str, model_folder: Path, tmp_path: Path) -> None:
    """Two micro-batches a step; one of step 2 is bad. The learning rate is constant, since the schedule goes on."""
    config = OptimizerConfig(name=name, learning_rate=1e-2, warmup_steps=0, final_fraction=1.0)
    data = batches(model_folder, 10)
    fields: dict[str, Any] = {"optimizer": config, "accumulate_grad_batches": 2, "log_every_n_steps": 2}
    with pytest.warns(UserWarning, match=rf"left out step 2 \(a non-finite {where}, samples 8-11\)"):
        run, fit, recorder = poisoned_run(model_folder, tmp_path, data, where, {10}, **fields)
    reference, other, _ = poisoned_run(model_folder, tmp_path, data[:4] + data[6:], where, set(), **fields)
    assert (fit.global_step, other.global_step) == (5, 4)
    assert torch.equal(flat(run.parameters()), flat(reference.parameters()))
    assert len(state_of(fit)) > 20
    assert all(torch.equal(a, b) for a, b in zip(state_of(fit), state_of(other), strict=True))
    assert float(fit.callback_metrics["train/skipped_steps"]) == 1
    assert float(other.callback_metrics["train/skipped_steps"]) == 0
    assert math.isfinite(recorder.losses[-1])


@pytest.mark.filterwarnings("ignore:left out")
def test_stops_and_names_the_samples(model_folder: Path, tmp_path: Path) -> None:
    config = OptimizerConfig(warmup_steps=0)
    guard = GuardConfig(stop_after=2)
    words = r"model\.guard\.stop_after 2: .*step 3 \(a non-finite loss, samples 6-7\); step 4 \(.*, samples 8-9\)"
    for every in (5, 50):  # on a log step; at the end
        with pytest.raises(UserError, match=words):
            poisoned_run(model_folder, tmp_path, batches(model_folder, 6), "loss", {1, 6, 9}, optimizer=config,
                         guard=guard, log_every_n_steps=every)  # fmt: skip


def test_count_and_window_are_in_the_checkpoint(model_folder: Path, tmp_path: Path) -> None:
    config, guard = OptimizerConfig(warmup_steps=0), GuardConfig(spike_sigma=6)
    data = batches(model_folder, 6)
    with pytest.warns(UserWarning):
        module, fit, _ = poisoned_run(model_folder, tmp_path, data, "loss", {5}, optimizer=config, guard=guard)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    resumed = Poisoned(name=str(model_folder), optimizer=config, guard=guard).poison("loss", set())
    again = trainer(tmp_path, 8)
    loader: Any = torch.utils.data.DataLoader(data * 2, batch_size=None)
    again.fit(resumed, loader, ckpt_path=str(tmp_path / "a.ckpt"))
    assert again.global_step == 8
    assert int(module._step.guard.spikes.seen) == 5 and int(resumed._step.guard.spikes.seen) == 7
    assert float(again.callback_metrics["train/skipped_steps"]) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_judging_does_not_wait_for_the_device() -> None:
    guard = StepGuard(GuardConfig(spike_sigma=6), torch.device("cuda"))
    values = [torch.tensor(value, device="cuda") for value in (1.0, NAN, 1.0)]
    try:
        torch.cuda.set_sync_debug_mode("error")
        verdicts = [guard.judge(step, value, value) for step, value in enumerate(values)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(verdicts).tolist() == [0, 1, 0]
