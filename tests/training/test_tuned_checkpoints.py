"""What a checkpoint of a tuned model gives back: the run, the plain model, adapters, a model to go on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from tuned_runs import MODES, batch, fitted, make, refused

from sinktrain.base.errors import UserError
from sinktrain.export.export import export
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule, TuningConfig, load_checkpoint
from sinktrain.training.saving import Checkpoints


@pytest.mark.parametrize("mode", MODES)
def test_a_run_in_two_parts_is_a_run_in_one(mode: str, either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> SinkModule:
        optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, schedule="wsd", decay_steps=1)
        module = make(either, mode, optimizer=optimizer, distill=0.5)
        fitted(module, prepared_folder, folder, steps, callbacks=[Checkpoints(str(folder / "kept"), every_n_steps=3)])
        return module

    whole = run(tmp_path / "whole", 6)
    # The first half of the same run, cut off: its checkpoint of step 3 was made by a schedule over 6 steps.
    kept = tmp_path / "parts" / "kept"
    kept.mkdir(parents=True)
    shutil.copytree(tmp_path / "whole" / "kept" / "step-000000003", kept / "step-000000003")
    (kept / "owner.txt").write_text((tmp_path / "whole" / "kept" / "owner.txt").read_text())
    parts = run(tmp_path / "parts", 6)
    for (name, expected), (_, found) in zip(
        whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True
    ):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_gives_the_plain_model(mode: str, either: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(either, mode)
    fitted(module, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    module.trainer.save_checkpoint(tmp_path / "single.ckpt")
    ids = batch(module)["input_ids"]
    with torch.no_grad():
        expected = module.model.eval()(input_ids=ids).logits
    for path in (tmp_path / "kept", tmp_path / "single.ckpt"):
        trained = load_checkpoint(path)
        assert trained.tuning == module.tuning
        assert not [name for name, _ in trained.model.named_parameters() if "lora" in name or "sink" in name]
        torch.testing.assert_close(trained.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TuningConfig(mode="embed"), TuningConfig(mode="sink_only")),
        (TuningConfig(), TuningConfig(mode="sink_only")),
        (TuningConfig(mode="lora"), TuningConfig(mode="lora", alpha=1.0)),
        (TuningConfig(), TuningConfig(distill=0.5)),
    ],
)
def test_a_run_does_not_go_on_as_another(
    before: TuningConfig, after: TuningConfig, model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    """What was saved would be exported as something that it is not."""

    def run(tuning: TuningConfig, steps: int) -> None:
        module = SinkModule(name=str(model_folder), tuning=tuning, optimizer=OptimizerConfig(warmup_steps=1))
        fitted(module, prepared_folder, tmp_path, steps, callbacks=[Checkpoints(str(tmp_path / "kept"))])

    run(before, 2)
    with pytest.raises(UserError, match=r"model\.tuning: .* differs from the checkpoint's"):
        run(after, 4)


def test_adapters_merged_or_kept(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """PEFT itself reads what is kept."""
    from peft import PeftModel

    module = make(model_folder, "lora")
    fitted(module, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "checkpoints"))])
    ids = batch(module)["input_ids"]
    with torch.no_grad():
        expected = module.model.eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(export(tmp_path / "checkpoints", tmp_path / "merged"))
        kept = export(tmp_path / "checkpoints", tmp_path / "kept", adapters="keep")
        base = AutoModelForCausalLM.from_pretrained(kept)
        without = base(input_ids=ids).logits
        peft = PeftModel.from_pretrained(base, kept / "adapter")
        assert float((without - expected).abs().max()) > 1e-2
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(peft(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert 'PeftModel.from_pretrained(model, "kept", subfolder="adapter")' in (kept / "README.md").read_text()
    config = json.loads((kept / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "kept" and str(tmp_path) not in str(config)  # and not where it lay


def test_adapters_that_are_not_there_cannot_be_kept(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    fitted(make(model_folder, "sink_only"), prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "c"))])
    with pytest.raises(UserError, match="--adapters keep: the checkpoint was tuned in mode sink_only"):
        export(tmp_path / "c", tmp_path / "model", adapters="keep")
    assert not (tmp_path / "model").exists()


def test_a_model_with_a_sink_is_gone_on_with(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """An export is a plain model: its sink is taken as it is, and no second one is added."""
    first = make(model_folder, "sink_only")
    fitted(first, prepared_folder, tmp_path, callbacks=[Checkpoints(str(tmp_path / "kept"))])
    out = export(tmp_path / "kept", tmp_path / "model", dtype="float32")
    second = make(out, "full")
    second.configure_model()
    weights = first.model.get_input_embeddings().weight
    assert second.sink_ids == first.sink_ids and second.front == first.sink_ids and second.known is None
    assert torch.equal(second.model.get_input_embeddings().weight, weights)
    recorder = fitted(second, prepared_folder, tmp_path / "second")
    assert (recorder.batches[0][:, 0] == second.sink_ids[0]).all()
    refused("has <sink> already, and another sink cannot be added", name=str(out), sink=SinkConfig(count=2))
    refused("has <sink> already", name=str(out), sink=SinkConfig(kind="none"))
    refused("is a checkpoint of sinktrain; go on with it by --checkpoints.resume", name=str(tmp_path / "kept"))
