"""Garbage is collected on the steps that were said, and Python is left as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
from test_golden import CONFIG
from test_training import trainer

from sinktrain.base.errors import UserError
from sinktrain.data import SinkDataModule
from sinktrain.training import OptimizerConfig, SinkModule
from sinktrain.training.garbage import GarbageCollection


@pytest.fixture(autouse=True)
def collection_is_on() -> Iterator[None]:
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


class Watch(L.Callback):
    """At the end of each batch: is Python's own collection on, and how often was garbage collected since the start?"""

    def __init__(self, fails_at: int | None = None) -> None:
        self.seen: list[tuple[int, bool, int]] = []
        self.fails_at = fails_at

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.seen.append((trainer.global_step, gc.isenabled(), gc.get_stats()[2]["collections"]))
        if trainer.global_step == self.fails_at:
            raise RuntimeError("in the middle")


def run(tokenizer: Path, data: Path, folder: Path, watch: Watch, **fields: int) -> None:
    module = SinkModule(config=CONFIG, tokenizer=str(tokenizer), optimizer=OptimizerConfig(warmup_steps=1))
    collects = GarbageCollection(**fields)
    fit = trainer(folder, 6, callbacks=[collects, watch], accumulate_grad_batches=2)
    fit.fit(module, SinkDataModule(str(data), sequence_length=32, batch_size=4))


def test_collects_on_its_steps_alone(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    watch = Watch()
    run(tokenizer_folder, prepared_folder, tmp_path, watch, every_n_steps=2)
    assert len(watch.seen) == 12 and not any(on for _, on, _ in watch.seen)
    first = watch.seen[0][2]
    by_step = {step: collections - first for step, _, collections in watch.seen}
    assert by_step == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_all_is_as_it_was_after_a_run_that_failed(
    tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tokenizer_folder, prepared_folder, tmp_path, Watch(fails_at=2))
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_leaves_python_to_itself(tokenizer_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    watch = Watch()
    run(tokenizer_folder, prepared_folder, tmp_path, watch, every_n_steps=0)
    assert all(on for _, on, _ in watch.seen)
    gc.disable()
    run(tokenizer_folder, prepared_folder, tmp_path, Watch(), every_n_steps=1)
    assert not gc.isenabled()  # it was not this callback that switched it off
    with pytest.raises(UserError, match=r"garbage\.every_n_steps -1"):
        GarbageCollection(-1)
