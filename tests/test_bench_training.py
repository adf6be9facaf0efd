"""The comparison of training speeds: its arithmetic, its material, and that contestants do the same work."""

from __future__ import annotations

import itertools
import math
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import SinkModule
from sinktrain.training import chunked as loss_module

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_loss  # noqa: E402
import bench_training  # noqa: E402
from peers.step_clock import StepClock  # noqa: E402
from peers.training_figures import disagreement, mfu, peak_flops, ratio, table, tokens_per_second  # noqa: E402
from peers.training_material import model_config, write_model, write_rows, write_text  # noqa: E402

LITGPT = Path(os.environ.get("LITGPT_PYTHON", ROOT / ".venv-litgpt" / "bin" / "python"))


def result(seconds: list[float], loss: float = 8.0, parameters: int = 100, memory: int = 2**20) -> dict[str, Any]:
    return {"seconds": seconds, "loss": loss, "parameters": parameters, "memory": memory}


def test_tokens_go_by_the_median_step() -> None:
    assert tokens_per_second(result([0.5, 9.0, 0.25]), 2048) == 4096
    with pytest.raises(ValueError, match="no step"):
        tokens_per_second(result([]), 2048)


def test_a_ratio_is_taken_within_rounds_and_has_an_interval() -> None:
    center, low, high = ratio([2.0, 8.0], [1.0, 2.0])  # 2 and 4
    assert center == pytest.approx(8**0.5)
    half = 12.706 * (math.log(4) - math.log(2)) / 2**0.5 / 2**0.5
    assert (low, high) == pytest.approx((center / math.exp(half), center * math.exp(half)))
    assert ratio([3.0], [2.0]) == (pytest.approx(1.5), 0, math.inf)
    narrow = ratio([1.01, 2.02, 4.04], [1.0, 2.0, 4.0])
    assert narrow == pytest.approx((1.01, 1.01, 1.01))


def test_mfu_counts_as_palm_does() -> None:
    # 160 million parameters, 12 layers, width 768, 2,048 positions: 1.186 GFLOP a token
    assert mfu(400_000, 160_000_000, 12, 768, 2048, 989e12) == pytest.approx(400_000 * 1.186492e9 / 989e12, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", None),
        ("", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_the_table_has_every_contestant_and_ratio() -> None:
    runs = {"trainer": [result([1.0]), result([2.0])], "none": [result([0.5]), result([1.0])]}
    model = {"matrices": 10, "layers": 1, "width": 4}
    lines = table(runs, 1000, model, 8, peak=1e6)
    assert len(lines) == 3 and "x trainer" in lines[0] and "litgpt" not in lines[0]
    assert lines[1].startswith("sinktrain, sink.kind none") and "1,500" in lines[1] and "2.000 (2.000" in lines[1]
    assert lines[1].split()[-1] == f"{(60 + 12 * 4 * 8) * 1500 / 1e6:.1%}"
    assert lines[2].startswith("transformers.Trainer") and "0.500" in lines[2]


def test_other_work_is_noticed() -> None:
    same = {"none": [result([1])], "trainer": [result([1], loss=8.00001)], "token": [result([1], loss=9.0)]}
    assert disagreement(same, 1e-4) is None
    assert "losses differ" in str(disagreement({**same, "litgpt": [result([1], loss=8.001)]}, 1e-4))
    assert "parameters differ" in str(disagreement({**same, "token": [result([1], parameters=101)]}, 1e-4))
    assert disagreement({**same, "kv": [result([1], parameters=105)]}, 1e-4) is None


def test_the_clock_times_from_step_to_step() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    clock = StepClock(optimizer, "cpu")
    assert clock.seconds() == []
    weight.grad = torch.ones(2)
    for _ in range(4):
        optimizer.step()
    assert len(clock.seconds()) == 3 and min(clock.seconds()) > 0


def test_options_follow_the_device_and_bad_ones_are_refused() -> None:
    options = bench_training.read_options(["--device", "cuda", "--steps", "20"])
    assert (options.model, options.precision, options.steps, options.length) == ("pythia-160m", "bf16", 20, 2048)
    assert bench_training.read_options(["--device", "cpu"]).model == "llama-9m"
    with pytest.raises(UserError, match=r"^--warmup 10: must be .* below --steps 10"):
        bench_training.read_options(["--device", "cpu", "--steps", "10"])
    with pytest.raises(UserError, match=r"^--model smollm2-135m: choose one of .*llama-9m"):
        model_config("smollm2-135m", 300)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_model({**model_config("llama-tiny", 256), "num_hidden_layers": 1, "hidden_size": 32}, folder / "model")
    write_text(folder / "model", 3000, folder / "data")
    write_rows(folder / "data", 32, 12, folder / "rows.npy")
    return folder


def test_a_sink_makes_the_model_no_larger(material: Path) -> None:
    modules = [SinkModule(name=str(material / "model"), sink=SinkConfig(kind=kind)) for kind in ("none", "token")]
    for module in modules:
        module.configure_model()
    sizes = {sum(p.numel() for p in module.parameters()) for module in modules}
    assert sizes == {sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(material / "model").parameters())}


def job(material: Path, contestant: str, **changes: Any) -> Any:
    options = bench_training.read_options(["--quick", "--device", "cpu", "--threads", "1"])
    for name, value in changes.items():
        setattr(options, name, value)
    options.out = material / "runs.jsonl"
    return bench_training.run(options, material, contestant)


@pytest.mark.slow
def test_contestants_do_the_same_work(material: Path) -> None:
    """litgpt too, where its environment is (LITGPT_PYTHON names its Python)."""
    names = ["none", "token", "trainer", *(["litgpt"] if LITGPT.is_file() else [])]
    for accumulation in (1, 2):
        runs = {name: [job(material, name, accumulation=accumulation, litgpt=LITGPT)] for name in names}
        assert disagreement(runs, 1e-5) is None
        assert all(len(found[0]["seconds"]) == 2 and found[0]["memory"] > 2**20 for found in runs.values())


def test_a_failure_is_told_in_a_sentence(material: Path) -> None:
    with pytest.raises(UserError, match=r"^--contestants litgpt: failed, as .*runs.log tells"):
        job(material, "litgpt", litgpt=Path(sys.executable))
    assert "litgpt" in (material / "runs.log").read_text()


def test_the_rows_are_those_that_fit_trains_on(material: Path, tmp_path: Path) -> None:
    module = SinkModule(name=str(material / "model"), sink=SinkConfig(kind="none"))
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, limit_val_batches=0, default_root_dir=tmp_path)
    data = SinkDataModule(str(material / "data"), sequence_length=32, batch_size=4)
    trainer.strategy._lightning_module, data.trainer = module, trainer
    data.setup("fit")
    seen = [batch["input_ids"] for batch in itertools.islice(data.train_dataloader(), 3)]
    assert torch.equal(torch.cat(seen), torch.from_numpy(np.load(material / "rows.npy")))


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("way", bench_loss.usable())
def test_every_way_to_the_loss_is_right(way: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinktrain.training.chunked._compiled", lambda: loss_module._nll_and_gradient)
    monkeypatch.setattr(bench_loss, "keep_memory", lambda: None)
    given = {"shape": [50, 8, 700], "precision": precision, "threads": 1, "device": "cpu", "calls": 2}
    found = bench_loss.measure({**given, "way": way, "memory": False})
    assert len(found["seconds"]) == 1 and max(found["errors"]) < (1e-5 if precision == "32" else 3e-2)


def test_the_reference_of_losses_is_float64_autograd() -> None:
    states, weight, targets = bench_loss.make_inputs(40, 6, bench_loss.PIECE + 30, "cpu")
    x, w = states.double().requires_grad_(), weight.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ w.T, targets, reduction="sum")
    expected = (loss, *torch.autograd.grad(loss, (x, w)))
    found = bench_loss.reference(states, weight, targets)
    assert found[0] == pytest.approx(loss.item(), rel=1e-12)
    for mine, exact in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_rise_of_memory_is_that_of_the_largest_moment() -> None:
    def call() -> None:
        for mebibytes in (10, 64, 5):
            torch.ones(mebibytes * 2**18)

    assert 60 * 2**20 < bench_loss.rise(call, "cpu") < 80 * 2**20
