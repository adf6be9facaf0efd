"""The DataModule in a real Trainer, with a stand-in for the model that writes down what it saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint, load_tokenizer
from sinktrain.data import HubStream, PreparedText, SinkDataModule
from sinktrain.data.prepare import prepare

SINKS = [900, 901]


class Recorder(L.LightningModule):
    """Has what a DataModule asks of the model, and keeps every batch."""

    def __init__(self, folder: Path, trained_length: int | None = 64, sinks: Sequence[int] = SINKS) -> None:
        super().__init__()
        self.sink_ids, self.trained_length = list(sinks), trained_length
        self.tokenizer = load_tokenizer(str(folder / "tokenizer"))
        self.tokenizer_fingerprint = fingerprint(self.tokenizer)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.samples: list[int] = []
        self.steps: list[int] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        assert all(values.dtype == torch.int64 for values in batch.values())
        assert (batch["labels"][:, : len(self.sink_ids)] == -100).all()
        assert not torch.isin(batch["labels"], torch.tensor(SINKS)).any()
        self.seen += list(batch["input_ids"])
        self.samples += batch["samples"].tolist()
        self.steps.append(self.trainer.global_step)
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.validated += list(batch["input_ids"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    (root / "a.txt").write_text(
        "\f\n".join(f"Document {i} has its own {i**3} words.\n" * (i % 4 + 1) for i in range(90))
    )
    return prepare(str(root / "a.txt"), root / "out", train_tokenizer=300, validation_fraction=0.2)


def trainer(steps: int, root: Path, **options: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, default_root_dir=root, num_sanity_val_steps=0, **quiet, **options
    )


def run(folder: Path, steps: int, root: Path, resume: Path | None = None, batch: int = 4, **options: Any) -> Recorder:
    module = Recorder(folder)
    data = SinkDataModule(str(folder), sequence_length=16, batch_size=batch, validation_batches=2)
    fitter = trainer(steps, root, limit_val_batches=0, **options)
    fitter.fit(module, data, ckpt_path=resume, weights_only=False if resume else None)
    assert fitter.global_step == steps
    if resume is None:
        fitter.save_checkpoint(root / "last.ckpt")
    return module


def rows(samples: list[Tensor]) -> list[list[int]]:
    return [sample.tolist() for sample in samples]


def test_every_row_is_a_chunk_with_the_sinks_in_front(folder: Path, tmp_path: Path) -> None:
    tokens = PreparedText(folder).tokens("train").astype(int).tolist()
    chunks = [tokens[i : i + 14] for i in range(0, len(tokens) - 13, 14)]
    steps = len(chunks) // 4 + 2  # over the end of the first epoch
    module = run(folder, steps, tmp_path)
    seen = rows(module.seen)
    assert module.samples == list(range(4 * steps))
    assert len(seen) == 4 * steps
    assert all(row[:2] == SINKS for row in seen)
    assert sorted(row[2:] for row in seen[: len(chunks)]) == sorted(chunks)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}])
def test_resumed_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = rows(run(folder, 40, tmp_path / "whole", **options).seen)
    first = rows(run(folder, 13, tmp_path / "cut", **options).seen)
    assert whole == first + rows(run(folder, 40, tmp_path / "rest", tmp_path / "cut" / "last.ckpt", **options).seen)


class SaveAt(L.Callback):
    """Saves after a micro-batch, as a callback does that goes by time."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        if index == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("saved_at", range(9))
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_step_is_whole_after_a_resume_from_inside_it_or_with_another_accumulation(
    folder: Path, tmp_path: Path, saved_at: int, accumulate: int
) -> None:
    """The first run takes 3 micro-batches a step; saved inside a step, that step is taken again."""
    path = tmp_path / "mid.ckpt"
    run(folder, 4, tmp_path, accumulate_grad_batches=3, callbacks=[SaveAt(saved_at, path)])
    taken = (saved_at + 1) // 3
    module = run(folder, 6, tmp_path, path, accumulate_grad_batches=accumulate)
    assert module.steps == [step for step in range(taken, 6) for _ in range(accumulate)]
    assert module.samples == list(range(12 * taken, 12 * taken + 4 * len(module.steps)))


def test_resumed_twice_with_another_batch_size(folder: Path, tmp_path: Path) -> None:
    whole = rows(run(folder, 20, tmp_path / "whole").seen)
    run(folder, 5, tmp_path / "a")
    module, data = Recorder(folder), SinkDataModule(str(folder), sequence_length=16, batch_size=2)
    second = trainer(9, tmp_path, limit_val_batches=0)
    second.fit(module, data, ckpt_path=tmp_path / "a" / "last.ckpt", weights_only=False)
    second.save_checkpoint(tmp_path / "b.ckpt")
    assert rows(module.seen) == whole[20:28]  # four steps of 2
    assert rows(run(folder, 12, tmp_path, tmp_path / "b.ckpt").seen) == whole[28:40]


def test_workers_give_the_same_batches(folder: Path, tmp_path: Path) -> None:
    module, data = Recorder(folder), SinkDataModule(str(folder), sequence_length=16, num_workers=2)
    trainer(6, tmp_path, limit_val_batches=0).fit(module, data)
    assert rows(module.seen) == rows(run(folder, 6, tmp_path).seen)


@pytest.mark.parametrize("batches", [None, 2])
def test_every_validation_sees_the_same_text(folder: Path, tmp_path: Path, batches: int | None) -> None:
    module = Recorder(folder)
    data = SinkDataModule(str(folder), sequence_length=16, validation_batches=batches)
    trainer(6, tmp_path, val_check_interval=3, check_val_every_n_epoch=None).fit(module, data)
    tokens = PreparedText(folder).tokens("validation").astype(int).tolist()
    expected = [SINKS + tokens[i : i + 14] for i in range(0, len(tokens) - 13, 14)]
    expected = expected if batches is None else expected[:8]
    assert len(expected) >= 8 and rows(module.validated) == expected * 2


def stand_in(
    folder: Path, rank: int, ranks: int, deals: bool = False, accumulate: int = 2, sinks: Sequence[int] = SINKS,
    step: int = 3, **options: Any,
) -> SinkDataModule:  # fmt: skip
    """A DataModule on one of several processes, without starting any."""
    data = SinkDataModule(**{"path": str(folder), "sequence_length": 16, **options})
    connector = SimpleNamespace(use_distributed_sampler=deals)
    loop = SimpleNamespace(epoch_loop=L.Trainer(logger=False, enable_checkpointing=False).fit_loop.epoch_loop)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        limit_train_batches=1.0,
        lightning_module=Recorder(folder, sinks=sinks), global_rank=rank, world_size=ranks, global_step=step,
        accumulate_grad_batches=accumulate, fit_loop=loop, limit_val_batches=1.0, _accelerator_connector=connector,
    )  # fmt: skip
    data.setup("fit")
    return data


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_order_of_one(folder: Path, ranks: int) -> None:
    def read(rank: int, ranks: int, batch: int) -> list[list[int]]:
        loader = stand_in(folder, rank, ranks, batch_size=batch).train_dataloader()
        return [row for got in islice(loader, 5) for row in got["input_ids"].tolist()]

    alone = read(0, 1, 4)
    each = [read(rank, ranks, 4 // ranks) for rank in range(ranks)]
    assert [row for turn in zip(*each, strict=True) for row in turn] == alone


@pytest.mark.parametrize("batches", [None, 3])
def test_ranks_share_the_validation_evenly(folder: Path, batches: int | None) -> None:
    def read(rank: int, ranks: int) -> list[list[int]]:
        loader = stand_in(folder, rank, ranks, batch_size=3, validation_batches=batches).val_dataloader()
        return [row for got in loader for row in got["input_ids"].tolist()]

    alone, each = read(0, 1), [read(rank, 4) for rank in range(4)]
    assert len({len(mine) for mine in each}) == 1 and each[0]
    assert [row for turn in zip(*each, strict=True) for row in turn] == alone[: len(alone) // 4 * 4]


def test_lightnings_own_sampler_is_refused_with_several_processes(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--trainer\.use_distributed_sampler"):
        stand_in(folder, 0, 2, deals=True)
    stand_in(folder, 0, 1, deals=True)


def fit(folder: Path, tmp_path: Path, module: Recorder | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        trainer(1, tmp_path).fit(module or Recorder(folder), SinkDataModule(str(folder), **options))
    return str(raised.value)


def read(data: SinkDataModule, batches: int) -> list[dict[str, Tensor]]:
    return list(islice(data.train_dataloader(), batches))


@pytest.mark.parametrize("packing", ["chunk", "document"])
def test_every_kind_trains_on_the_same_text(folder: Path, packing: Any) -> None:
    """With as many positions kept for sinks, whether the model uses them or not."""
    texts = []
    for sinks in ([], SINKS[:1], SINKS):
        data = stand_in(folder, 0, 1, sinks=sinks, reserve_sinks=2, packing=packing)
        (batch,) = read(data, 1)
        assert batch["input_ids"].shape == (4, 16 if packing == "document" else 14 + len(sinks))
        assert ("position_ids" in batch) == (packing == "document")
        texts.append([[token for token in row if token not in SINKS and token] for row in batch["input_ids"].tolist()])
    assert texts[0] == texts[1] == texts[2] and sum(map(len, texts[0])) > 40
    assert read(stand_in(folder, 0, 1, sinks=[]), 1)[0]["input_ids"].shape == (4, 16)  # nothing kept unless asked


@pytest.mark.parametrize("packing", ["chunk", "document"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_with_everything_are_the_same_for_any_ranks_and_workers(
    two_folders: dict[str, float], folder: Path, packing: Any, workers: int
) -> None:
    """A mixture, packed, with a global batch in tokens; resumed in the middle."""
    options: dict[str, Any] = {"path": None, "sources": two_folders, "packing": packing}

    def steps(ranks: int, batch: int) -> list[dict[int, list[int]]]:
        """By optimizer step: the samples and what they hold."""
        found: list[dict[int, list[int]]] = [{} for _ in range(6)]
        for rank in range(ranks):
            data = stand_in(folder, rank, ranks, accumulate=1, step=2, batch_size=batch, global_batch_tokens=128,
                            num_workers=workers, **options)  # fmt: skip
            times = data.trainer.accumulate_grad_batches  # type: ignore[union-attr]
            assert times == 8 // (ranks * batch)
            for number, got in enumerate(read(data, 6 * times)):
                held = torch.cat([got[name] for name in sorted(set(got) - {"samples"})], dim=1)
                found[number // times].update(zip(got["samples"].tolist(), held.tolist(), strict=True))
        return found

    alone = steps(1, 8)
    assert [sorted(step) for step in alone] == [list(range(16 + 8 * n, 24 + 8 * n)) for n in range(6)]
    assert steps(2, 2) == alone and steps(4, 1) == alone


@pytest.fixture(scope="module")
def two_folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """`folder` and another text prepared with its tokenizer, which is kept in more bytes."""
    root = tmp_path_factory.mktemp("other")
    (root / "a.txt").write_text("\f\n".join(f"Other number {i} is {i**2}, and so on.\n" for i in range(60)))
    other = prepare(str(root / "a.txt"), root / "out", tokenizer=str(folder / "tokenizer"), validation_fraction=0.2)
    manifest = json.loads((other / "manifest.json").read_text())
    for split in ("train", "validation"):
        np.fromfile(other / f"{split}.bin", dtype="<u2").astype("<u4").tofile(other / f"{split}.bin")
        manifest["files"][f"{split}.bin"]["bytes"] *= 2
    (other / "manifest.json").write_text(json.dumps({**manifest, "dtype": "<u4"}))
    return {str(folder): 3, str(other): 1}


def test_sources_are_mixed_by_weight(two_folders: dict[str, float], folder: Path, tmp_path: Path) -> None:
    data = stand_in(folder, 0, 1, path=None, sources=two_folders, step=0, batch_size=10, accumulate=1)
    chunks = []
    for name in two_folders:
        tokens = PreparedText(name).tokens("train").astype(int).tolist()
        chunks.append([tuple(tokens[i : i + 14]) for i in range(0, len(tokens) - 13, 14)])
    assert not set(chunks[0]) & set(chunks[1])
    seen = [tuple(row[2:]) for batch in read(data, 100) for row in batch["input_ids"].tolist()]
    counts = [sum(row in set(source) for row in seen) for source in chunks]
    assert counts == [750, 250]
    validated = [row for batch in data.val_dataloader() for row in batch["input_ids"].tolist()]
    expected = [len(PreparedText(name).tokens("validation")) // 14 for name in two_folders]
    assert len(validated) == sum(expected) and min(expected) > 0


def test_the_trainer_is_told_to_accumulate(folder: Path, tmp_path: Path) -> None:
    module, data = Recorder(folder), SinkDataModule(str(folder), 16, 2, global_batch_tokens=96)
    fitter = trainer(4, tmp_path, limit_val_batches=0)
    fitter.fit(module, data)
    assert fitter.accumulate_grad_batches == 3 and module.steps == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert module.samples == list(range(24)) and data.samples_used() == 24
    fitter.fit_loop.epoch_loop.max_steps = 6
    fitter.fit(module, data)  # what was derived is no contradiction
    with pytest.raises(UserError, match=r"--trainer\.accumulate_grad_batches 2: .* one of the two"):
        trainer(1, tmp_path, accumulate_grad_batches=2).fit(Recorder(folder), data)
    with pytest.raises(UserError, match="64 and 96 work"):
        trainer(1, tmp_path).fit(Recorder(folder), SinkDataModule(str(folder), 16, 2, global_batch_tokens=80))


def test_bad_choices_of_text(folder: Path, two_folders: dict[str, float], tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, r"--data\.path: is missing"),
        ({"path": "a", "sources": two_folders}, r"--data\.path, --data\.sources: give one"),
        ({"sources": {}}, "is empty"),
        ({"sources": {"a": 0.0}}, "weight is 0"),
        ({"sources": {"a": float("nan")}}, "weight is nan"),
        ({"sources": {"a": 1, "b": 4000}}, r"--data\.sources a: .* under a thousandth"),
        ({"path": "a", "packing": "paragraph"}, r"--data\.packing paragraph: unknown; choose one of chunk, document"),
        ({"stream": HubStream("a"), "packing": "document"}, "use chunk"),
        ({"stream": HubStream("a"), "num_workers": 2}, "use 0 or 1"),
    ]
    for options, words in bad:
        with pytest.raises(UserError, match=words):
            SinkDataModule(**options)
    assert "use 2 or more" in fit(folder, tmp_path, sequence_length=16, reserve_sinks=1)
    assert "at least 12, 10 of it for sinks" in fit(folder, tmp_path, sequence_length=11, reserve_sinks=10)
    broken = shutil.copytree(folder, tmp_path / "broken")
    whole = (broken / "train.bin").read_bytes()
    (broken / "train.bin").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    stand_in(folder, 0, 1, path=str(broken))
    with pytest.raises(UserError, match="has changed"):
        stand_in(folder, 0, 1, path=str(broken), check_files=True)


def test_bad_settings(folder: Path, tmp_path: Path) -> None:
    assert "at least 4" in fit(folder, tmp_path, sequence_length=3)
    too_long = fit(folder, tmp_path, sequence_length=65)
    assert "--data.sequence_length 65" in too_long and "64 positions" in too_long
    for name in ("batch_size", "validation_batches", "seed", "num_workers"):
        assert f"--data.{name} -1" in fit(folder, tmp_path, **{name: -1})
    other = Recorder(folder)
    other.tokenizer_fingerprint = "0" * 64
    assert "--model.tokenizer" in fit(folder, tmp_path, other, sequence_length=16)


def test_text_shorter_than_a_sample(folder: Path, tmp_path: Path) -> None:
    tokens = {split: len(PreparedText(folder).tokens(split)) for split in ("train", "validation")}
    sentence = fit(folder, tmp_path, Recorder(folder, None), sequence_length=tokens["train"] + 3)
    assert f"{tokens['train']} tokens" in sentence and f"sample of {tokens['train'] + 1}" in sentence
    sentence = fit(folder, tmp_path, Recorder(folder, None), sequence_length=tokens["validation"] + 3)
    assert "validation text" in sentence and f"{tokens['validation']} tokens" in sentence


def test_fewer_samples_than_one_batch(folder: Path, tmp_path: Path) -> None:
    held = len(PreparedText(folder).tokens("train")) // 14
    SinkDataModule(str(folder), 16, held)
    sentence = fit(folder, tmp_path, sequence_length=16, batch_size=held + 1)
    assert f"{held} training samples" in sentence and f"one global batch of {held + 1}" in sentence
    with pytest.raises(UserError, match=f"one global batch of {held + held % 2 + 2}"):
        stand_in(folder, 0, 1, batch_size=held // 2 + 1 + held % 2)


def test_without_validation_its_text_does_not_matter(folder: Path, tmp_path: Path) -> None:
    data = SinkDataModule(str(folder), sequence_length=len(PreparedText(folder).tokens("validation")) + 3, batch_size=1)
    module = Recorder(folder, None)
    trainer(1, tmp_path, limit_val_batches=0).fit(module, data)
    assert len(module.seen) == 1


def test_folder_that_was_not_prepared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `sinktrain prepare`"):
        trainer(1, tmp_path).fit(Recorder(folder), SinkDataModule(str(tmp_path), sequence_length=16))
