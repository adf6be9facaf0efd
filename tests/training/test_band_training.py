"""`model.band`: a SinkModule whose losses are those that its stream has, with everything that makes training fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from forking import Ranks
from test_golden import CONFIG
from test_strategies import check_equal, run
from test_training import Recorder, make, trainer
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.monitoring import SinkMonitor
from sinktrain.sinks import SinkConfig
from sinktrain.streaming import blocks, stream_nll
from sinktrain.streaming.train import NAME
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.flops import flops_per_token
from sinktrain.training.throughput import Throughput

BAND = {"band": "2+9"}


def losses(tokenizer: Path, data: Path, folder: Path, steps: int = 3, length: int = 48, **fields: Any) -> list[float]:
    module = from_scratch(tokenizer, **fields)
    recorder = Recorder()
    precision = "bf16-mixed" if fields.get("reduced") else "32-true"
    fit = trainer(folder, steps, callbacks=[recorder], gradient_clip_val=1.0, precision=precision)
    fit.fit(module, SinkDataModule(str(data), sequence_length=length, batch_size=4))
    return recorder.losses


def from_scratch(tokenizer: Path, **fields: Any) -> SinkModule:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    fields = {**BAND, **{name: x for name, x in fields.items() if name != "reduced"}}
    return SinkModule(config=CONFIG, tokenizer=str(tokenizer), optimizer=optimizer, **fields)


@pytest.mark.parametrize("rule", ["cache", "original"])
def test_losses_are_those_of_the_stream(model_folder: Path, rule: Any) -> None:
    """Summed over a batch, by a module that no Trainer holds."""
    module = make(model_folder, **BAND, band_rule=rule)
    module.configure_model()
    ids = torch.randint(1, 90, (3, 60), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = module.sink_ids[0]
    labels = ids.clone()
    labels[:, 0] = -100
    objective, nll, tokens = module.losses({"input_ids": ids, "labels": labels})
    assert int(tokens) == 3 * 59
    module.banded.end()
    module.model.eval()
    assert module.band is not None
    expected = stream_nll(module.model, ids, module.band, rule=rule).sum()
    assert float(objective) == pytest.approx(float(expected), rel=1e-5) == float(nll)
    full = make(model_folder)
    full.configure_model()
    assert (
        abs(float(full.losses({"input_ids": ids, "labels": labels})[1] / expected) - 1) > 1e-3
    )  # a band does something


class Watch(L.Callback):
    """Which attention the model has, in training and validation."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.seen.append(pl_module.model.config._attn_implementation)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.seen.append(pl_module.model.config._attn_implementation)


def test_training_and_validation_have_the_band_and_nothing_after_them(
    model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """Through samples longer than the model was trained for, with a monitor that looks at full attention."""
    module = make(model_folder, band="1+30")
    assert module.trained_length == 512
    watch = Watch()
    data = SinkDataModule(str(prepared_folder), sequence_length=600, batch_size=1)
    monitor = SinkMonitor(every_n_steps=2, sequences=2)
    fit = trainer(tmp_path, 4, limit_val_batches=1, val_check_interval=2, check_val_every_n_epoch=None,
                  num_sanity_val_steps=1, callbacks=[watch, monitor])  # fmt: skip
    fit.fit(module, data)  # a validation, without gradients, is the first that needs angles
    assert watch.seen == [NAME] * 7
    assert module.model.config._attn_implementation == "sdpa"
    fit.validate(module, data, verbose=False)
    assert watch.seen == [NAME] * 8
    assert module.model.config._attn_implementation == "sdpa"
    assert NAME not in str(module.model.config.to_dict())


@pytest.mark.parametrize("kind", ["token", "logit", "kv"])
def test_recomputed_activations_change_no_loss(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROWS", 16)
    sink = SinkConfig(kind=kind)
    kept, recomputed = (
        losses(tokenizer_folder, prepared_folder, tmp_path, sink=sink, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert len(kept) == 3 and recomputed == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("kind", ["token", "kv"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compilation_changes_no_loss(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any,
    checkpointing: bool,
) -> None:  # fmt: skip
    sink = SinkConfig(kind=kind)
    eager = losses(tokenizer_folder, prepared_folder, tmp_path, sink=sink)
    compiled: list[str] = []
    real = torch.compile

    def quick(function: Any, **options: Any) -> Any:
        compiled.append(function.__qualname__)
        return real(function, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", quick)
    monkeypatch.setattr("sinktrain.training.chunked._cache", [])
    found = losses(
        tokenizer_folder, prepared_folder, tmp_path, sink=sink, compile=True, gradient_checkpointing=checkpointing
    )
    assert len(compiled) == 2 and found == pytest.approx(eager, abs=1e-5)


@pytest.mark.slow
def test_the_default_compiler_changes_no_loss(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    eager, compiled = (
        losses(tokenizer_folder, prepared_folder, tmp_path, compile=compile) for compile in (False, True)
    )
    assert compiled == pytest.approx(eager, abs=1e-5)


def test_bfloat16(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    exact, reduced = (
        losses(tokenizer_folder, prepared_folder, tmp_path, 6, reduced=reduced) for reduced in (False, True)
    )
    assert exact != reduced and reduced == pytest.approx(exact, abs=0.03)


@pytest.fixture(scope="module")
def text(model_folder: Path, prepared_folder: Path) -> dict[str, Any]:
    return {"model": str(model_folder), "data": str(prepared_folder), "band": "1+9"}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one_process(strategy: str, starter: Ranks, text: dict[str, Any], tmp_path: Path) -> None:
    alone = run(starter, tmp_path / "alone", "auto", 1, 4, 1, **text)[0]
    check_equal(run(starter, tmp_path / "two", strategy, 2, 1, 2, **text), alone)


def test_the_flops_of_a_position_are_those_of_what_it_sees(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    module, speed = from_scratch(tokenizer_folder), Throughput(1e12)
    fit = trainer(tmp_path, 3, callbacks=[speed], log_every_n_steps=1)
    fit.fit(module, SinkDataModule(str(prepared_folder), sequence_length=48, batch_size=2))
    assert speed._flops == flops_per_token(module.model, 12) < flops_per_token(module.model, 48)


def test_packed_documents_are_refused(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2, packing="document")
    with pytest.raises(UserError, match=r"--data.packing document: .* --model.band 2\+9 cannot"):
        trainer(tmp_path, 1).fit(make(model_folder, **BAND), data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"band": "0+9"}, "keeps 0 of the model's 1 sinks"),
        ({"band": "1+9", "sink": SinkConfig(count=2)}, "keeps 1 of the model's 2 sinks"),
        ({"band": "dense"}, "model.band dense"),
        ({"band": "9"}, "model.band '9'"),
        ({"band": "1+511"}, "513 positions at once"),
        ({"band": "1+9", "band_rule": "text"}, "band_rule text"),
    ],
)
def test_bands_that_cannot_be(model_folder: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(model_folder, **fields)


@pytest.mark.parametrize(("fields", "refused"), [({}, True), (BAND, False), ({**BAND, "band_rule": "original"}, True)])
def test_samples_longer_than_the_model_was_trained_for(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, fields: dict[str, Any], refused: bool
) -> None:
    """With the cache's distances no position is beyond what the model knows."""
    data = SinkDataModule(str(prepared_folder), sequence_length=600, batch_size=1)
    module = make(model_folder, **fields)
    if not refused:
        trainer(tmp_path, 2).fit(module, data)
        return
    with pytest.raises(UserError, match="above the 512 positions"):
        trainer(tmp_path, 1).fit(module, data)


def test_a_sink_learns_through_the_part_that_has_left_the_band(model_folder: Path) -> None:
    """A loss at positions beyond the cache alone reaches the sink's row."""
    module = make(model_folder, **BAND)
    module.configure_model()
    ids = torch.randint(1, 90, (1, 60), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = module.sink_ids[0]
    row: list[Tensor] = []
    for last in (60, 20):
        labels = ids.clone()
        labels[:, : last - 1] = -100
        module.zero_grad()
        module.losses({"input_ids": ids[:, :last], "labels": labels[:, :last]})[0].backward()
        row.append(module.model.get_input_embeddings().weight.grad[module.sink_ids[0]].clone())
    assert all(float(each.abs().max()) > 1e-3 for each in row)
