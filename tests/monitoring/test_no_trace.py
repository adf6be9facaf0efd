"""A run that is watched is the run that is not, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from watched_runs import KINDS, Losses, new_module, train

from sinktrain.base.errors import UserError
from sinktrain.monitoring import SinkMonitor, StreamingProbe
from sinktrain.training.throughput import Throughput


def watchers() -> list[Any]:
    return [SinkMonitor(2, sequences=6, length=20), StreamingProbe(2, size=12, tokens=60, chunk=16)]


def state_of(module: Any) -> dict[str, Any]:
    """Everything that a look could change, copied."""
    return copied(
        {
            "weights": module.state_dict(),
            "gradients": {name: p.grad for name, p in module.named_parameters()},
            "moments": module.trainer.optimizers[0].state_dict()["state"],
            "modes": [part.training for part in module.modules()],
            "attention": module.model.config._attn_implementation,
            "config": module.model.config.to_dict(),
            "random": torch.get_rng_state(),
            "grad_enabled": torch.is_grad_enabled(),
        }
    )


def copied(a: Any) -> Any:
    if isinstance(a, dict):
        return {key: copied(value) for key, value in a.items()}
    return a.detach().clone() if isinstance(a, Tensor) else copy.copy(a)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def compare_around_looks(monitor: Any) -> list[int]:
    """Lets each look of `monitor` be compared with what was there before; gives the steps of the looks."""
    steps: list[int] = []
    look = monitor._look

    def watched(trainer: L.Trainer, module: L.LightningModule) -> None:
        before = state_of(module)
        compiled = [part._compiled_call_impl for part in module.modules()]
        look(trainer, module)
        assert same(before, state_of(module))
        assert compiled == [part._compiled_call_impl for part in module.modules()]
        assert not steps or any(gradient is not None for gradient in before["gradients"].values())
        steps.append(trainer.global_step)

    monitor._look = watched
    return steps


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_same_to_the_bit(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: str
) -> None:
    dropout = {"attention_dropout": 0.1} if kind in ("none", "token") else {}  # draws random numbers
    found, steps = [], []
    for callbacks in ([], [*watchers(), Throughput()]):
        steps = [compare_around_looks(each) for each in callbacks[:2]]
        recorder = Losses()
        torch.manual_seed(0)
        train(new_module(tokenizer_folder, kind, dropout), prepared_folder, tmp_path, [*callbacks, recorder],
              accumulate_grad_batches=2)  # fmt: skip
        found.append(recorder.found[1:])
    assert steps == [[0, 2, 4], [0, 2, 4]]
    assert len(found[0]) == 9 and len(set(found[0])) == 5 and found[0] == found[1]


@pytest.mark.parametrize("kind", ["token", pytest.param("kv", marks=pytest.mark.slow)])
def test_nothing_is_compiled_again(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also when the first look comes after the first compiled step, as in a resumed run."""
    from torch._dynamo.utils import counters

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="aot_eager", **options))
    monkeypatch.setattr("sinktrain.training.chunked._cache", [])
    found = []
    for callbacks in ([], watchers()):
        steps = [compare_around_looks(each) for each in callbacks]
        for each in callbacks:
            each.on_train_start = lambda *args: None
            each._looked_until = None
            each._looked_at = 0
        torch._dynamo.reset()
        counters.clear()
        recorder = Losses()
        train(new_module(tokenizer_folder, kind, compile=True), prepared_folder, tmp_path, [*callbacks, recorder])
        found.append((recorder.found, counters["stats"]["unique_graphs"]))
    assert steps == [[2, 4], [2, 4]]
    assert found[0] == found[1] and found[0][1] > 0


def test_an_error_in_a_look_leaves_the_model_as_it_was(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    monitor: Any = SinkMonitor(2, sequences=6, length=20)
    during = []

    def fails(trainer: L.Trainer, module: Any) -> None:
        during.append([torch.is_grad_enabled(), *(part.training for part in module.modules())])
        raise UserError("in the middle of a look")

    monitor.look = fails
    module = new_module(tokenizer_folder)
    with pytest.raises(UserError, match="in the middle"):
        train(module, prepared_folder, tmp_path, [monitor])
    assert len(during) == 1 and len(during[0]) > 10 and not any(during[0])
    assert torch.is_grad_enabled() and all(part.training for part in module.model.modules())
