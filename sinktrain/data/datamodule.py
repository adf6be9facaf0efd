"""Prepared text for a Lightning Trainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from sinktrain.base.errors import UserError
from sinktrain.data.prepared import PreparedText, Split
from sinktrain.data.samples import ChunkedSamples, OrderedSampler, collate


class SinkDataModule(L.LightningDataModule):
    """Batches of prepared text, with the model's sink in front of every sample.

    The model (the LightningModule) says which sinks: it has `sink_ids` (list[int]), `tokenizer_fingerprint` (str) and
    `trained_length` (int or None) from its construction on. Its Trainer needs `use_distributed_sampler: false` when
    there are several processes, because the samples are shared out here, and `max_steps`, because they never end.

    Args:
        path: The folder that `sinktrain prepare` made.
        sequence_length: How many positions a training sample has, its sinks among them.
        batch_size: How many samples each process puts through the model at once.
        validation_batches: Validate on the first so many batches, the same text every time; leave it out for all.
        seed: Another seed gives another order of the training samples.
        num_workers: How many processes of each rank load samples; 0 loads them in the training process.
    """

    def __init__(
        self,
        path: str,
        sequence_length: int = 512,
        batch_size: int = 4,
        validation_batches: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("validation_batches", 1 if validation_batches is None else validation_batches, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(f"--data.{name} {value}: must be at least {least}.")
        self.path, self.sequence_length, self.batch_size = Path(path), sequence_length, batch_size
        self.validation_batches, self.seed, self.num_workers = validation_batches, seed, num_workers
        self.sink_ids: list[int] = []
        self._splits: dict[Split, ChunkedSamples] = {}
        self._step, self._used = 0, 0  # at this step of the optimizer, this many samples had been used

    def setup(self, stage: str) -> None:
        """Opens the text and checks that it fits the model.

        Raises:
            UserError: not prepared text, another tokenizer's tokens, or a sequence length that the model or the text
                cannot fill.
        """
        trainer = self._trainer()
        module: Any = trainer.lightning_module
        self.sink_ids = list(module.sink_ids)
        self._check_lengths(module.trained_length)
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "--trainer.use_distributed_sampler true: would deal the samples out a second time; set it to false."
            )
        if trainer.limit_train_batches != 1.0:
            raise UserError(
                f"--trainer.limit_train_batches {trainer.limit_train_batches}: would train on the same batches again "
                "and again, since the order of samples never ends; set --trainer.max_steps instead."
            )
        text = PreparedText(self.path)
        text.check_tokenizer(module.tokenizer_fingerprint)
        wanted: list[Split] = [] if stage != "fit" else ["train"]
        if trainer.limit_val_batches != 0:
            wanted.append("validation")
        self._splits = {split: self._samples(text, split) for split in wanted}

    def _check_lengths(self, trained: int | None) -> None:
        length, sinks = self.sequence_length, len(self.sink_ids)
        if length < sinks + 2:
            raise UserError(f"--data.sequence_length {length}: must be at least {sinks + 2}, {sinks} of it for sinks.")
        if trained is not None and length > trained:
            raise UserError(
                f"--data.sequence_length {length}: is above the {trained} positions that the model was trained for; "
                f"use {trained} or less."
            )

    def _samples(self, text: PreparedText, split: Split) -> ChunkedSamples:
        tokens = text.tokens(split)
        samples = ChunkedSamples(tokens, self.sequence_length, len(self.sink_ids))
        if not len(samples):
            raise UserError(
                f"--data.path {self.path}: its {split} text has {len(tokens)} tokens, a document shorter than a "
                f"sample of {samples.text_length}; prepare more text, or lower --data.sequence_length."
            )
        return samples

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Endless batches of `input_ids` and `labels` (batch_size, sequence_length), from the trainer's step on."""
        trainer = self._trainer()
        samples = self._splits["train"]
        sampler = OrderedSampler(len(samples), self.seed, self.samples_used(), trainer.global_rank, trainer.world_size)
        return self._loader(samples, sampler)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The validation text in order, or its first `validation_batches` batches, shared out over the ranks."""
        trainer = self._trainer()
        samples = self._splits["validation"]
        most = len(samples) if self.validation_batches is None else self.validation_batches * self.batch_size
        # Every rank gets equally many: with sharded weights, a rank that has one batch more would wait for ever.
        each = min(most, len(samples)) // trainer.world_size
        if each == 0:
            raise UserError(
                f"--data.path {self.path}: its validation text has {len(samples)} samples of --data.sequence_length "
                f"{self.sequence_length} for {trainer.world_size} processes; prepare it with more "
                "--validation_fraction, or lower the sequence length."
            )
        mine = range(trainer.global_rank, each * trainer.world_size, trainer.world_size)
        return self._loader(Subset(samples, mine), None)

    def samples_used(self) -> int:
        """How many training samples all ranks together have used: where a resumed run goes on.

        Lightning restores the step from a checkpoint before it asks for the loader, and then takes the loader's
        batches from its first. So the loader itself begins behind what earlier steps used. Steps are counted as the
        optimizer took them: batches fetched ahead, or accumulated for a step that was never taken, come again.
        """
        trainer = self._trainer()
        per_step = trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        return self._used + (trainer.global_step - self._step) * per_step

    def state_dict(self) -> dict[str, int]:
        """For the checkpoint. Samples stand beside steps, for a run that goes on with other ranks or batches."""
        return {"step": self._trainer().global_step, "samples": self.samples_used()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """From a checkpoint."""
        self._step, self._used = state_dict["step"], state_dict["samples"]

    def _loader(self, samples: torch.utils.data.Dataset[Tensor], sampler: Sampler[int] | None) -> DataLoader[Tensor]:
        return DataLoader(
            samples,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=sampler is not None,
            num_workers=self.num_workers,
            # A forked worker shares the map of the tokens; any other kind would be sent a copy of the whole text.
            multiprocessing_context="fork" if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(collate, sink_ids=self.sink_ids),
        )

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("SinkDataModule serves a Trainer; give it to `Trainer.fit(module, datamodule)`")
        return self.trainer
