"""The LightningModule and its DataModule: sinks in every forward pass, the right loss, resume, plain checkpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.sinks import SinkConfig
from sinktrain.training import OptimizerConfig, SinkModule, load_checkpoint
from sinktrain.training.optimizer import build_optimizer
from sinktrain.training.schedule import learning_rate_factor


def make(model_folder: Path, **fields: Any) -> SinkModule:
    fields = {"optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=1), **fields}
    return SinkModule(name=str(model_folder), **fields)


def trainer(folder: Path, steps: int, **fields: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    settings = {"max_steps": steps, "accelerator": "cpu", "enable_checkpointing": False, "limit_val_batches": 0}
    return L.Trainer(default_root_dir=folder, use_distributed_sampler=False, **{**quiet, **settings, **fields})


class Recorder(L.Callback):
    """Keeps every batch and loss that training and validation saw."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        self.batches.append(batch["input_ids"].clone())
        self.labels.append(batch["labels"].clone())
        self.losses.append(float(trainer.callback_metrics.get("train/loss", math.nan)))

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        self.batches.append(batch["input_ids"].clone())
        self.labels.append(batch["labels"].clone())


@pytest.mark.parametrize("count", [1, 2])
def test_every_forward_pass_has_its_sinks_in_front(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, count: int
) -> None:
    module = make(model_folder, sink=SinkConfig(count=count))
    seen: list[Tensor] = []
    recorder = Recorder()
    data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=3)
    fit = trainer(tmp_path, 3, limit_val_batches=2, val_check_interval=2, check_val_every_n_epoch=None,
                  callbacks=[recorder])  # fmt: skip
    module.configure_model()
    base: torch.nn.Module = module.model.base_model
    base.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["input_ids"]), with_kwargs=True)
    fit.fit(module, data)
    assert len(seen) == len(recorder.batches) == 3 + 2
    for ids, labels in zip(seen, recorder.labels, strict=True):
        assert ids.shape == (3, 32)
        assert ids[:, :count].tolist() == [module.sink_ids] * 3
        assert not torch.isin(ids[:, count:], torch.tensor(module.sink_ids)).any()
        assert (labels[:, :count] == -100).all() and torch.equal(labels[:, count:], ids[:, count:])


def test_loss_is_that_of_a_bare_loop_over_transformers(
    model_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    recorder = Recorder()
    module = make(model_folder)
    data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=4)
    trainer(tmp_path, 6, gradient_clip_val=0.5, callbacks=[recorder]).fit(module, data)

    bare = make(model_folder)
    bare.configure_model()
    optimizer = build_optimizer(bare.model, bare.optimizer, bare.sink_ids)
    losses = []
    for step, ids in enumerate(recorder.batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate_factor(step, bare.optimizer, 6)
        labels = ids.masked_fill(ids == bare.sink_ids[0], -100)
        loss = bare.model(input_ids=ids, labels=labels, use_cache=False).loss  # transformers' own loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert recorder.losses == pytest.approx(losses, abs=2e-6)


def unequal_batches(module: SinkModule) -> list[dict[str, Tensor]]:
    """Three micro-batches whose numbers of valid tokens are far from equal."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for valid in (20, 3, 11):
        ids = torch.randint(1, 90, (1, 21), generator=generator)
        ids[:, 0] = module.sink_ids[0]
        labels = ids.clone()
        labels[:, 0] = -100
        labels[:, 1 + valid :] = -100
        batches.append({"input_ids": ids, "labels": labels})
    return batches


class GrabGradients(L.Callback):
    """Keeps the gradients that the optimizer was given."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        self.gradients = found or self.gradients


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def test_accumulation_weights_by_tokens(model_folder: Path, tmp_path: Path) -> None:
    """Three unequal micro-batches make the gradient that one batch of all of them makes."""
    optimizer = OptimizerConfig(warmup_steps=0)
    module, whole, naive = (make(model_folder, optimizer=optimizer) for _ in range(3))
    for each in (module, whole, naive):
        each.configure_model()
    batches, grab = unequal_batches(module), GrabGradients()
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer(tmp_path, 1, accumulate_grad_batches=3, callbacks=[grab]).fit(module, loader)

    nll, _, tokens = whole.losses({key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    assert int(tokens) == 34
    (nll / tokens).backward()
    for batch in batches:
        nll, _, tokens = naive.losses(batch)
        (nll / tokens / 3).backward()
    expected, wrong = flat(p.grad for p in whole.parameters()), flat(p.grad for p in naive.parameters())
    found = flat(grab.gradients.values())
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((found - wrong).norm() / expected.norm()) > 0.05  # the mean of means is another gradient


class StopAt(L.Callback):
    """Ends the run after a number of optimizer steps, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_resume_is_bit_equal(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, stop: int | None = None, ckpt: str | None = None) -> tuple[SinkModule, Recorder]:
        module, recorder = make(model_folder), Recorder()
        data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2)
        stopping = [] if stop is None else [StopAt(stop)]
        fit = trainer(folder, steps, accumulate_grad_batches=2, callbacks=[recorder, *stopping])
        fit.fit(module, data, ckpt_path=ckpt)
        if stop is not None:
            fit.save_checkpoint(folder / "mid.ckpt")
        return module, recorder

    whole, all_batches = run(tmp_path, 8)
    _, first = run(tmp_path, 8, stop=3)
    resumed, second = run(tmp_path, 8, ckpt=str(tmp_path / "mid.ckpt"))
    assert len(first.batches) == 6 and len(second.batches) == 10
    for a, b in zip(all_batches.batches, first.batches + second.batches, strict=True):
        assert torch.equal(a, b)
    assert all_batches.losses[-1] == second.losses[-1]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoint_is_whole_without_the_base_model(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(model_folder)
    fit = trainer(tmp_path, 2)
    fit.fit(module, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    trained = load_checkpoint(tmp_path / "a.ckpt")
    assert (trained.step, trained.sink) == (2, module.sink)
    ids = torch.tensor([[*module.sink_ids, 5, 9, 30]])
    module.eval()
    with torch.no_grad():
        assert torch.equal(trained.model(ids).logits, module(ids))
    assert trained.tokenizer("the cat").input_ids == module.tokenizer("the cat").input_ids
    torch.load(tmp_path / "a.ckpt", weights_only=True)  # nothing in it is a pickled object


def test_a_checkpoint_of_another_sink_is_refused(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    data = SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2)
    fit = trainer(tmp_path, 1)
    fit.fit(make(model_folder, optimizer=OptimizerConfig(warmup_steps=0)), data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    other = make(model_folder, sink=SinkConfig(init="normal"))
    with pytest.raises(UserError, match=r"model\.sink"):
        trainer(tmp_path, 4).fit(other, data, ckpt_path=str(tmp_path / "a.ckpt"))


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "short.ckpt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="cut short"):
        load_checkpoint(tmp_path / "short.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not written by"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_from_a_config(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    one = SinkModule(config=config, tokenizer=str(tokenizer_folder), optimizer=OptimizerConfig(warmup_steps=1))
    two = SinkModule(config=config, tokenizer=str(tokenizer_folder), sink=SinkConfig(kind="none"))
    one.configure_model()
    two.configure_model()
    assert one.trained_length == 64 and two.sink_ids == []
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(one.model.state_dict()[q_proj], two.model.state_dict()[q_proj])
    trainer(tmp_path, 2).fit(one, SinkDataModule(str(prepared_folder), sequence_length=32, batch_size=2))


@pytest.mark.parametrize(("fields", "words"), [
    ({}, r"model\.name, model\.config"), ({"config": {"model_type": "llama"}}, r"model\.tokenizer"),
    ({"name": "./nowhere"}, r"model\.name \./nowhere: no such")])  # fmt: skip
def test_bad_models_name_the_option(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SinkModule(**fields)


def test_training_without_max_steps_is_refused(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        trainer(tmp_path, -1, max_epochs=1).fit(make(model_folder), SinkDataModule(str(prepared_folder), 32, 2))


def test_schedule() -> None:
    config = OptimizerConfig(warmup_steps=4, final_fraction=0.1)
    factors = [learning_rate_factor(step, config, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))
    assert factors[12] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 8 / 15)))


def test_vectors_are_not_decayed(model_folder: Path) -> None:
    module = make(model_folder)
    module.configure_model()
    decayed, kept = build_optimizer(module.model, OptimizerConfig()).param_groups
    assert {p.dim() for p in decayed["params"]} == {2} and decayed["weight_decay"] == 0.1
    assert {p.dim() for p in kept["params"]} == {1} and kept["weight_decay"] == 0


def test_validation_is_weighted_by_tokens(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    module = make(model_folder)
    module.configure_model()
    batches = unequal_batches(module)
    fit = trainer(tmp_path, 1, limit_val_batches=1.0)
    fit.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
    logits = [module(batch["input_ids"])[:, :-1].flatten(0, 1) for batch in batches]
    targets = [batch["labels"][:, 1:].flatten() for batch in batches]
    expected = F.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=-100)
    assert float(fit.callback_metrics["val/loss"]) == pytest.approx(float(expected), abs=1e-5)


def test_new_models_of_all_kinds_begin_with_the_same_weights(tokenizer_folder: Path) -> None:
    """Tied or not: as many rows, and the same in all that both have."""
    for tied in (False, True):
        config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                  "num_attention_heads": 4, "tie_word_embeddings": tied}  # fmt: skip
        states = []
        for sink in (SinkConfig(kind="none"), SinkConfig(count=1), SinkConfig(count=2)):
            module = SinkModule(config=config, tokenizer=str(tokenizer_folder), sink=sink)
            module.configure_model()
            states.append(module.model.state_dict())
            assert len(module.model.generation_config.suppress_tokens) == len(states[0]["lm_head.weight"]) - (
                len(module.tokenizer) - len(module.sink_ids)
            )
        known = len(module.tokenizer) - 2
        assert len(states[0]["lm_head.weight"]) % 64 == 0
        for state in states[1:]:
            assert state.keys() == states[0].keys()
            for name, weight in state.items():
                rows = known if name in ("lm_head.weight", "model.embed_tokens.weight") else None
                assert weight.shape == states[0][name].shape
                assert torch.equal(weight[:rows], states[0][name][:rows]), name
