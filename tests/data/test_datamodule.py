"""The DataModule in a real Trainer, with a stand-in for the model that writes down what it saw."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint, load_tokenizer
from sinktrain.data import PreparedText, SinkDataModule
from sinktrain.data.prepare import prepare

SINKS = [900, 901]


class Recorder(L.LightningModule):
    """Has what a DataModule asks of the model, and keeps every batch."""

    def __init__(self, folder: Path, trained_length: int | None = 64) -> None:
        super().__init__()
        self.sink_ids, self.trained_length = SINKS, trained_length
        self.tokenizer_fingerprint = fingerprint(load_tokenizer(str(folder / "tokenizer")))
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        assert (batch["labels"][:, : len(SINKS)] == -100).all()
        assert not torch.isin(batch["labels"], torch.tensor(SINKS)).any()
        self.seen += list(batch["input_ids"])
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
    seen = rows(run(folder, steps, tmp_path).seen)
    assert len(seen) == 4 * steps
    assert all(row[:2] == SINKS for row in seen)
    assert sorted(row[2:] for row in seen[: len(chunks)]) == sorted(chunks)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}])
def test_resumed_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = rows(run(folder, 40, tmp_path / "whole", **options).seen)
    first = rows(run(folder, 13, tmp_path / "cut", **options).seen)
    assert whole == first + rows(run(folder, 40, tmp_path / "rest", tmp_path / "cut" / "last.ckpt", **options).seen)


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


def stand_in(folder: Path, rank: int, ranks: int, deals: bool = False, **options: Any) -> SinkDataModule:
    """A DataModule on one of several processes, without starting any."""
    data = SinkDataModule(str(folder), sequence_length=16, **options)
    connector = SimpleNamespace(use_distributed_sampler=deals)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        limit_train_batches=1.0,
        lightning_module=Recorder(folder), global_rank=rank, world_size=ranks, global_step=3, accumulate_grad_batches=2,
        limit_val_batches=1.0, _accelerator_connector=connector,
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


def test_without_validation_its_text_does_not_matter(folder: Path, tmp_path: Path) -> None:
    data = SinkDataModule(str(folder), sequence_length=len(PreparedText(folder).tokens("validation")) + 3, batch_size=1)
    module = Recorder(folder, None)
    trainer(1, tmp_path, limit_val_batches=0).fit(module, data)
    assert len(module.seen) == 1


def test_folder_that_was_not_prepared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `sinktrain prepare`"):
        trainer(1, tmp_path).fit(Recorder(folder), SinkDataModule(str(tmp_path), sequence_length=16))
