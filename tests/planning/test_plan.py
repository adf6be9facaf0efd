"""`sinktrain plan`: its parts against arithmetic and real tensors, the laws of sharding, refusals and their advice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from sinktrain.base.errors import UserError
from sinktrain.base.models import model_from_config
from sinktrain.cli import main
from sinktrain.planning import as_trained
from sinktrain.planning.advice import largest_batch, remedies
from sinktrain.planning.hardware import GIB, Device
from sinktrain.planning.memory import BUCKET, GATHERED_LAYERS, memory, sizes
from sinktrain.planning.settings import Settings
from sinktrain.planning.skeleton import Skeleton, read_skeleton
from sinktrain.planning.tracing import Work, trace, trace_depth
from sinktrain.training.heads import has_plain_head
from sinktrain.training.loss import next_token_loss
from sinktrain.training.optimizer import OptimizerConfig, build_optimizer

ROOT = Path(__file__).parents[2]
D, I, KV, HEADS, LAYERS, ROWS = 64, 160, 32, 4, 5, 320  # noqa: E741
LLAMA = {"model_type": "llama", "hidden_size": D, "intermediate_size": I, "num_hidden_layers": LAYERS,
         "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "tie_word_embeddings": False}  # fmt: skip
OTHERS = {
    "gpt_neox": {**LLAMA, "model_type": "gpt_neox", "rotary_pct": 0.25},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 32},
    "bloom": {"model_type": "bloom", "hidden_size": D, "n_layer": 3, "n_head": HEADS},
}
PARAMETERS = 2 * ROWS * D + D + LAYERS * (2 * D * D + 2 * D * KV + 3 * D * I + 2 * D)
SHAPES = [(1, 16, False, ROWS), (16, 128, False, ROWS), (16, 128, True, ROWS), (16, 128, True, 4096)]
WHOLE = Settings("cpu", 1, 8, 1, False, 32, 2, None, "32-true", "adamw", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def skeleton_of(config: dict[str, Any], folder: Path, rows: int = ROWS) -> Skeleton:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({"model": {"config": config}}))
    return read_skeleton(str(path), rows - 64)  # 64 rows are for sinks


@pytest.fixture(scope="module")
def llama(folder: Path) -> Skeleton:
    return skeleton_of(LLAMA, folder)


def work(checkpointing: bool = False, autocast: bool = False, kept: bool = False, **more: Any) -> Work:
    usual = {"batch_size": 2, "sequence_length": 32, "dtype": "float32", "optimizer": "adamw"}
    return Work(**{**usual, "autocast": autocast, "checkpointing": checkpointing, "kept": kept, **more})


def test_a_llama_by_hand(llama: Skeleton) -> None:
    """What the backward pass of a Llama needs, written down layer by layer; float32."""
    batch, length = 2, 32
    tokens = batch * length
    layer = 8 * D + 4 * I + 2 * KV + HEADS + 2  # norms 3 D and 1 each, q, k, v, their result, log-sum-exp, SwiGLU 4 I
    rotation = 2 * length * D // HEADS
    loss = batch * (length - 1) * D + ROWS * D  # gradients of hidden states and head
    by_hand = 4 * (LAYERS * tokens * layer + rotation + tokens * (2 * D + 1) + loss) + 8 * tokens
    assert trace(llama, work()).saved == by_hand
    recomputed = 4 * (LAYERS * tokens * D + tokens * (2 * D + 1) + loss) + 8 * tokens
    assert trace(llama, work(checkpointing=True)).saved == recomputed
    found = memory(llama, WHOLE)
    assert found.parameters == found.gradients == 4 * PARAMETERS
    assert found.optimizer == 8 * PARAMETERS + 4 * (2 + 1 + 9 * LAYERS)  # and a step count for each tensor


@pytest.mark.parametrize("kind", list(OTHERS))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_families_keep_what_real_tensors_keep(kind: str, checkpointing: bool, folder: Path) -> None:
    skeleton, config = skeleton_of(OTHERS[kind], folder), OTHERS[kind]
    model = model_from_config(config, ROWS).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    ids = torch.zeros(2, 32, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        next_token_loss(hidden, model.get_output_embeddings(), ids)
    real = sum(size for place, size in kept.items() if place not in weights)
    planned = trace(skeleton, work(checkpointing)).saved
    assert planned == pytest.approx(real, rel=0.02)  # masks that training does without


@pytest.mark.parametrize(("checkpointing", "kept"), [(False, True), (True, False)])
def test_depth_is_extrapolated_exactly(checkpointing: bool, kept: bool, llama: Skeleton) -> None:
    for more in ({"autocast": True}, {"dtype": "bfloat16", "optimizer": "muon"}):
        shallow = trace(llama, work(checkpointing, kept=kept, **more))
        deep = trace_depth(llama, work(checkpointing, kept=kept, **more), LAYERS)
        assert (shallow.saved, shallow.forward, shallow.step) == (deep.saved, deep.forward, deep.step)
        assert max(shallow.backward) == max(deep.backward)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_peak_is_that_of_torchs_allocator(shape: tuple[int, int, bool, int], folder: Path) -> None:
    """Two real steps under the profiler, which sees every allocation, those inside operations too."""
    batch, length, checkpointing, rows = shape
    skeleton = skeleton_of(LLAMA, folder, rows)
    parameters = PARAMETERS + 2 * (rows - ROWS) * D
    model = model_from_config(LLAMA, rows).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = build_optimizer(model, OptimizerConfig())
    ids = torch.zeros(batch, length, dtype=torch.int64)

    def step() -> None:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        objective = next_token_loss(hidden, model.get_output_embeddings(), ids)[0]
        del hidden
        optimizer.zero_grad()  # as Lightning: after the forward pass
        objective.backward()
        optimizer.step()

    step()
    optimizer.zero_grad()  # the profiler does not see the end of what it has not seen the beginning of
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    wanted = replace(WHOLE, batch_size=batch, sequence_length=length, gradient_checkpointing=checkpointing)
    planned = memory(skeleton, wanted)
    assert planned.total == pytest.approx(12 * parameters + peak, rel=0.1)
    if batch > 1:  # activations weigh most
        assert planned.activations + planned.working == pytest.approx(peak - 4 * parameters, rel=0.1)


@pytest.mark.slow
def test_the_peak_is_that_of_the_kernel() -> None:
    command = [sys.executable, "scripts/measure_memory.py", "--samples", "8", "--length", "512"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "granite", "gemma2", "cohere"])
def test_heads_are_told_apart_without_data(kind: str) -> None:
    fields = {**LLAMA, "model_type": kind, "num_hidden_layers": 1, "pad_token_id": 0}
    fields |= {"logits_scaling": 2.0} if kind == "granite" else {}
    with FakeTensorMode():
        found = as_trained.has_plain_head(model_from_config(fields, ROWS))
    model = model_from_config(fields, ROWS)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)  # small logits look the same when they are capped
    assert found == has_plain_head(model) == (kind in ("llama", "gpt_neox"))


def test_shards_are_parts_of_the_whole(llama: Skeleton) -> None:
    whole = replace(WHOLE, strategy="ddp", gpus=8, precision="bf16-mixed")
    for gpus in (8, 64):
        sharded = memory(llama, replace(whole, strategy="fsdp2", gpus=gpus))
        assert sharded.parameters == sharded.gradients == 4 * PARAMETERS / gpus
        layer, rest = sizes(llama, "adamw", gpus, 1).layer, 2 * ROWS * D + D
        assert layer * LAYERS + rest == PARAMETERS
        step = trace(llama, work(dtype="bfloat16", kept=True))
        gathered = 2 * rest + GATHERED_LAYERS * 2 * layer
        at_the_top = max(step.forward, max(step.backward) + 2 * layer + 2 * 4 * layer)
        assert sharded.activations + sharded.working == gathered + max(at_the_top, (2 + 4) * rest)
        n = PARAMETERS
        for stage, expected in ((1, (2 * n, 2 * n)), (2, (2 * n, 2 * n / gpus)), (3, (2 * n / gpus, 2 * n / gpus))):
            zero = memory(llama, replace(whole, strategy=f"deepspeed-zero{stage}", gpus=gpus))  # type: ignore[arg-type]
            assert (zero.parameters, zero.gradients) == expected and zero.optimizer == 12 * n / gpus
            assert zero.working > (4 if stage < 3 else 2) * BUCKET
            away = memory(llama, replace(whole, strategy=f"deepspeed-zero{stage}", gpus=gpus, offload=True))  # type: ignore[arg-type]
            assert away.optimizer == 0 and away.moved == 16 * n / gpus + (2 * n / gpus if stage == 3 else 0)
    copies = memory(llama, whole)
    assert copies.parameters == 4 * PARAMETERS and copies.working > 4 * PARAMETERS  # DDP's buckets


def test_tensor_parallel_halves_the_matrices_and_what_lies_between_them(llama: Skeleton) -> None:
    plain = replace(WHOLE, strategy="fsdp2", gpus=8, precision="bf16-mixed")
    half = replace(plain, tensor_parallel=2)
    matrices = LAYERS * (2 * D * D + 2 * D * KV + 3 * D * I)
    assert memory(llama, half).parameters == 4 * (matrices / 8 + (PARAMETERS - matrices) / 4)
    inner = 2 * LAYERS * 64 * (2 * D + 2 * KV + 4 * I) + 4 * LAYERS * 64 * HEADS
    assert memory(llama, plain).activations - memory(llama, half).activations == inner / 2


def test_muon_has_one_moment_of_matrices(llama: Skeleton) -> None:
    matrices = LAYERS * (2 * D * D + 2 * D * KV + 3 * D * I)
    state = memory(llama, replace(WHOLE, optimizer="muon")).optimizer
    assert state == 4 * matrices + 8 * (PARAMETERS - matrices) + 4 * (3 + 2 * LAYERS)


@settings(deadline=None, max_examples=4)
@given(batch=st.integers(1, 3), more=st.integers(1, 2), checkpointing=st.booleans())
def test_more_samples_need_more_memory(batch: int, more: int, checkpointing: bool) -> None:
    one = replace(WHOLE, batch_size=batch, gradient_checkpointing=checkpointing)
    assert memory(_SHARED[0], one).total < memory(_SHARED[0], replace(one, batch_size=batch + more)).total


_SHARED: list[Skeleton] = []


@pytest.fixture(autouse=True)
def _shared(llama: Skeleton) -> None:
    _SHARED[:] = [llama]


def test_the_advised_batch_fits_and_one_more_does_not(llama: Skeleton) -> None:
    wanted = replace(WHOLE, strategy="ddp", gpus=4, batch_size=16, precision="bf16-mixed")
    enough = memory(llama, replace(wanted, batch_size=13)).total
    device = Device("x", (enough / GIB + 2.0) / 0.95 + 1e-6)
    advised = largest_batch(llama, wanted, device)
    assert advised == 13
    assert memory(llama, replace(wanted, batch_size=13)).total <= device.usable
    assert memory(llama, replace(wanted, batch_size=14)).total > device.usable
    found = remedies(llama, wanted, device)
    assert {"batch_size": 13} in [remedy.changed for remedy in found]
    assert all(memory(llama, remedy.settings).total <= device.usable for remedy in found)
    # Of a global batch of 40 samples, a GPU takes a divisor of 10.
    assert largest_batch(llama, replace(wanted, batch_size=10, global_batch_tokens=40 * 32), device) == 5


def test_refused_with_what_would_fit_and_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["plan", "--model", str(ROOT / "configs/model/llama-8b.yaml"), "--vocabulary", "128256"]
    assert main([*model, "--strategy", "ddp", "--gpus", "8", "--batch_size", "1"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: " in out and "--strategy fsdp2 (" in out and "computed, not measured" in out
    sharded = [*model, "--strategy", "fsdp2", "--gpus", "8", "--batch_size", "1", "--price", "2", "--tokens", "1e9"]
    assert main([*sharded, "--out", str(tmp_path / "plan.json")]) == 0
    record = json.loads((tmp_path / "plan.json").read_text())
    assert "fits, with" in capsys.readouterr().out and record["fits"]
    assert record["parameters"] == 8_030_785_536  # 64 rows of 2 x 4,096 above Llama 3.1's 8,030,261,248
    speed = record["speed"]
    assert speed["flops_per_token"] == 6 * (8_030_785_536 - 128_320 * 4096) + 12 * 32 * 4096 * 2048
    assert speed["tokens_per_second"] == pytest.approx(8 * 989e12 * 0.35 / speed["flops_per_token"])
    assert speed["dollars"] == pytest.approx(1e9 / speed["tokens_per_second"] / 3600 * 8 * 2)


MISTAKES = {
    "--model configs/model/llama-1b.yaml --vocabulary 0": "--vocabulary",
    "--model configs/model/llama-1b.yaml": "--vocabulary",
    "--model nowhere.yaml": "--model nowhere.yaml",
    "--model configs/trainer/cpu.yaml": "--model configs/trainer/cpu.yaml",
    "--strategy cpu --gpus 2": "--gpus 2",
    "--strategy ddp --gpus 4 --tensor_parallel 2": "--tensor_parallel",
    "--strategy fsdp2 --gpus 4 --tensor_parallel 3": "--tensor_parallel",
    "--strategy fsdp2 --gpus 8 --tensor_parallel 8": "whole heads",
    "--strategy ddp --gpus 2 --offload true": "--offload",
    "--strategy deepspeed-zero2 --gpus 2 --optimizer muon": "--optimizer muon",
    "--global_batch_tokens 1000": "--global_batch_tokens",
    "--sequence_length 4096": "--sequence_length",
    "--batch_size 0": "--batch_size",
    "--mfu 1.5": "--mfu",
    "--price -1": "--price",
    "--strategy magic": "strategy",
    "--gpu b300": "gpu",
}


@pytest.mark.parametrize("line", list(MISTAKES))
def test_mistakes_are_one_sentence(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    known = "" if "--model" in line else "--model configs/model/llama-1b.yaml --vocabulary 32000 "
    assert main(["plan", *(known + line).split()]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and MISTAKES[line] in told[0]


@pytest.mark.parametrize("more", ["tuning: {mode: sink_only}", "tuning: {distill: 0.5}", "band: 1+63"])
def test_what_is_not_planned_for_is_refused(more: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"model:\n  name: {model_folder}\n  {more}\n")
    with pytest.raises(UserError, match=r"has model\.(tuning|band), which is not planned for; leave it out"):
        read_skeleton(str(tmp_path / "m.yaml"), None)
    (tmp_path / "m.yaml").write_text(f"model:\n  name: {model_folder}\n  tuning: {{mode: full}}\n")
    assert read_skeleton(str(tmp_path / "m.yaml"), None).layers == 3
