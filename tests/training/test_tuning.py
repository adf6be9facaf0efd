"""Modes of tuning: what moves and what does not, gradients, and what they hold in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from transformers import AutoTokenizer
from tuned_runs import MODES, batch, changed, fitted, make

from sinktrain.sinks import SinkConfig
from sinktrain.training import SinkModule, load_checkpoint
from sinktrain.training.saving import Checkpoints


@pytest.mark.parametrize("mode", MODES)
def test_only_what_the_mode_says_is_trained(mode: str, either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(either, mode)
    module.configure_model()
    start = {name: value.clone() for name, value in module.model.state_dict().items()}
    recorder = fitted(module, prepared_folder, tmp_path)
    assert len(recorder.losses) == 4 and min(recorder.losses[1:]) < recorder.losses[0]
    moved = changed(module, start)
    rows = {name for name in moved if "embed_tokens" in name or "lm_head" in name}
    norms = {name for name in start if "norm" in name}
    if mode == "full":
        assert moved == set(start)
        return
    weight = module.model.get_input_embeddings().weight
    sink = module.sink_ids[0]
    others = torch.arange(len(weight)) != sink
    before = start["model.embed_tokens.weight"]
    assert torch.equal(weight[others], before[others]) and not torch.equal(weight[sink], before[sink])
    assert torch.equal(weight[sink], module.rows.parameter[0].detach())
    tied = module.model.get_output_embeddings().weight is weight
    assert rows == {"model.embed_tokens.weight", "model.embed_tokens.sink_rows"} | (
        {"lm_head.weight"} if tied else set()
    )
    if mode == "lora":
        assert moved - rows == {name for name in start if ".lora_" in name}
        assert len(moved - rows) == 2 * 7 * 3  # A and B of seven matrices in three layers
    else:
        assert moved - rows == (norms if mode == "embed" else set())


def test_sink_only_keeps_gradients_and_moments_of_one_row(either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(either, "sink_only")
    fitted(module, prepared_folder, tmp_path)
    optimizer: Any = module.trainer.optimizers[0]
    state = [value for each in optimizer.state.values() for value in each.values()]
    assert sorted(value.numel() for value in state) == [1, 32, 32]  # step, two moments of a row
    assert all(p.grad is None for p in module.parameters() if p is not module.rows.parameter)
    assert [p.numel() for group in optimizer.param_groups for p in group["params"]] == [32]


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps, each storage once, weights apart."""

    def __init__(self, module: SinkModule) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.found: dict[int, int] = {}
        super().__init__(self.keep, lambda x: x)

    def keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.found[storage.data_ptr()] = storage.nbytes()
        return x


def test_sink_only_keeps_less_for_the_backward_pass(either: Path) -> None:
    kept = {}
    for mode in ("sink_only", "full"):
        module = make(either, mode)
        module.configure_model()
        counter = Kept(module)
        with counter:
            module.losses(batch(module))[0].backward()
        kept[mode] = sum(counter.found.values())
    assert 0 < kept["sink_only"] < 0.75 * kept["full"]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_the_rows_gradient_is_that_of_the_whole_model(either: Path, count: int, documents: bool) -> None:
    """The sink alone, with the norms, and beside adapters that add nothing yet: as when everything is trained."""
    found = {}
    for mode in MODES:
        module = make(either, mode, sink=SinkConfig(count=count))
        module.configure_model()
        module.model.double()
        module.losses(batch(module, count, documents))[0].backward()
        whole = module.model.get_input_embeddings().weight.grad
        found[mode] = whole[module.sink_ids] if mode == "full" else module.rows.parameter.grad
    assert float(found["full"].abs().max()) > 1e-3
    for mode in MODES:
        torch.testing.assert_close(found[mode], found["full"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_a_head_that_is_not_plain_gives_the_row_its_gradient_too(
    count: int, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Gemma 2 caps its logits; its head is tied, so that a sink's row is in every logit of the sink."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    fields = {"model_type": "gemma2", "vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8,
              "final_logit_softcapping": 2.0, "sliding_window": 512}  # fmt: skip
    tiny_model("llama", **fields).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = {}
    for mode in ("full", "sink_only"):
        module = make(tmp_path, mode, sink=SinkConfig(count=count))
        module.configure_model()
        assert not module.plain_head
        module.losses(batch(module, count))[0].backward()
        whole = module.model.get_input_embeddings().weight.grad
        found[mode] = whole[module.sink_ids] if mode == "full" else module.rows.parameter.grad
    assert float(found["full"].abs().max()) > 1e-3
    torch.testing.assert_close(found["sink_only"], found["full"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3_text"])
def test_an_embedding_that_scales_its_rows(family: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tiny_model("llama", model_type=family, vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8,
               sliding_window=512).save_pretrained(tmp_path)  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    found = {}
    for mode in ("full", "sink_only"):
        module = make(tmp_path, mode)
        module.configure_model()
        objective = module.losses(batch(module))[0]
        objective.backward()
        whole = module.model.get_input_embeddings().weight.grad
        row = whole[module.sink_ids] if mode == "full" else module.rows.parameter.grad
        found[mode] = (objective.detach(), row)
    torch.testing.assert_close(found["sink_only"], found["full"], rtol=1e-3, atol=1e-4)


def test_frozen_weights_in_bfloat16_leave_the_row_in_float32(
    either: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    for mode in ("sink_only", "lora"):
        module = make(either, mode, dtype="bfloat16")
        recorder = fitted(module, prepared_folder, tmp_path)
        dtypes = {p.requires_grad: p.dtype for p in module.parameters()}
        assert dtypes == {True: torch.float32, False: torch.bfloat16}
        assert min(recorder.losses[1:]) < recorder.losses[0]
        written = module.model.get_input_embeddings().weight[module.sink_ids]
        assert torch.equal(written, module.rows.parameter.detach().bfloat16())


@pytest.mark.parametrize("kind", ["logit", "kv"])
def test_outlets_beside_frozen_weights_in_bfloat16(
    kind: Any, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module = make(model_folder, "sink_only", dtype="bfloat16", sink=SinkConfig(kind=kind))
    module.configure_model()
    names = [name for name, p in module.model.named_parameters() if p.requires_grad]
    start = {name: module.model.get_parameter(name).detach().clone() for name in names}
    fitted(module, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    assert {p.requires_grad: p.dtype for p in module.parameters()} == {True: torch.float32, False: torch.bfloat16}
    assert names and changed(module, start) == set(names)
    kept = dict(load_checkpoint(tmp_path / "kept").model.named_parameters())
    for name in names:
        assert torch.equal(kept[name], module.model.get_parameter(name))


@pytest.mark.parametrize("kind", ["logit", "kv"])
def test_sink_only_of_other_kinds_trains_their_outlets(
    kind: str, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module = make(model_folder, "sink_only", sink=SinkConfig(kind=kind))  # type: ignore[arg-type]
    module.configure_model()
    start = {name: value.clone() for name, value in module.model.state_dict().items()}
    fitted(module, prepared_folder, tmp_path)
    moved = changed(module, start)
    assert moved and moved == {name for name in start if name.rpartition(".")[2] in ("sinks", "sink_key", "sink_value")}


@pytest.mark.parametrize("mode", ["sink_only", pytest.param("lora", marks=pytest.mark.slow)])
def test_compilation_and_recomputation_change_no_loss(
    mode: str, either: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="aot_eager", **options))
    torch._dynamo.reset()
    found = []
    for fields in ({}, {"compile": True}, {"gradient_checkpointing": True}):
        module = make(either, mode, distill=0.5, **fields)
        found.append(fitted(module, prepared_folder, tmp_path, accumulate_grad_batches=2).losses[1::2])
    assert len(found[0]) == 4 and len(set(found[0])) == 4
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[2] == pytest.approx(found[0], abs=1e-5)
