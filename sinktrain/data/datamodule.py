"""Prepared or streamed text for a Lightning Trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sinktrain.base.errors import UserError, at_least
from sinktrain.data.checks import (
    check_band,
    check_batch,
    check_chats,
    check_choice,
    check_layout,
    check_order,
    check_trainer,
    open_texts,
    order_of,
)
from sinktrain.data.global_batch import accumulation
from sinktrain.data.hubstream import ResumableStream, StreamedBatches, begin_worker
from sinktrain.data.mixture import Mixture
from sinktrain.data.packing import DEFAULT_LENGTH, Layout, Packing, Rows
from sinktrain.data.prepared import PreparedText, Split
from sinktrain.data.samples import Batches, OrderedBatches, Share, in_order
from sinktrain.data.streamed_text import HubStream, StreamedText


class SinkDataModule(L.LightningDataModule):
    """Batches of text, with the model's sink in front of every sample (of every document, with packing `document`).

    A batch holds `input_ids` and `labels` (B, T), `samples` (B,), the samples' numbers in the endless order, and with
    packing `document` also `position_ids` (B, T).

    The model (the LightningModule) says which sinks: it has `sink_ids` (list[int]), `tokenizer_fingerprint` (str) and
    `trained_length` (int or None) from its construction on, and for `stream` also `tokenizer`. One that is trained with
    the band of a cache has `band` and `longest_sample` (int or None) besides. Its Trainer needs
    `use_distributed_sampler: false` when there are several processes, because the samples are shared out here, and
    `max_steps`, because they never end.

    Args:
        path: The folder that `sinktrain prepare` made.
        sequence_length: How many positions a training sample has, its sinks among them.
        batch_size: How many samples each process puts through the model at once.
        global_batch_tokens: Positions of an optimizer step over all processes; the accumulation follows from it.
            Leave it out to give trainer.accumulate_grad_batches instead.
        packing: `chunk` cuts the whole text into samples; `document` fills each sample with whole documents that do
            not see each other. Conversations (`sinktrain prepare --chat true`) need `document`.
        reserve_sinks: Positions kept for sinks in each sample (each document, with packing `document`); leave it out
            for the model's own number. Models of several kinds see the same text, sample by sample, if it is the
            same number for all.
        sources: Instead of `path`, several prepared folders and their weights, the parts of all samples that they give.
        stream: Instead of prepared text, a Hugging Face dataset read while training; `path` or `sources` then serve
            validation alone, or none if left out.
        validation_batches: Validate on the first so many batches, the same text every time; leave it out for all.
        check_files: Read all prepared files first and compare their checksums; their sizes are always compared.
        seed: Another seed gives another order of the training samples.
        num_workers: How many processes of each rank load samples; 0 loads them in the training process.
    """

    def __init__(
        self,
        path: str | None = None,
        sequence_length: int = DEFAULT_LENGTH,
        batch_size: int = 4,
        global_batch_tokens: int | None = None,
        packing: Packing = "chunk",
        reserve_sinks: int | None = None,
        sources: dict[str, float] | None = None,
        stream: HubStream | None = None,
        validation_batches: int | None = None,
        check_files: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        at_least("--data.batch_size", batch_size, 1)
        at_least("--data.seed", seed, 0)
        at_least("--data.num_workers", num_workers, 0)
        if validation_batches is not None:
            at_least("--data.validation_batches", validation_batches, 1)
        if packing not in get_args(Packing):
            raise UserError(f"--data.packing {packing}: unknown; choose one of {', '.join(get_args(Packing))}.")
        check_choice(path, sources, stream, packing, num_workers)
        self.sequence_length, self.batch_size, self.packing = sequence_length, batch_size, packing
        self.global_batch_tokens, self.reserve_sinks = global_batch_tokens, reserve_sinks
        self.folders = {path: 1.0} if path is not None else dict(sources or {})
        self.stream, self.check_files = stream, check_files
        self.validation_batches, self.seed, self.num_workers = validation_batches, seed, num_workers
        self._option = "--data.path" if path is not None else "--data.sources"
        self._text: StreamedText | None = None
        self._splits: dict[Split, list[Rows]] = {}
        self._accumulation = 1  # what was derived
        self._step, self._used = 0, 0  # at this step of the optimizer, this many samples had been used
        self._stream_state: dict[str, Any] | None = None
        self._streamed: ResumableStream | None = None
        self._order: dict[str, Any] = {}  # what decides which sample is which

    def setup(self, stage: str) -> None:
        """Opens the text, checks that it fits the model, and tells the Trainer how many micro-batches make a step.

        Raises:
            UserError: not prepared text, another tokenizer's tokens, a sequence length that the model or the text
                cannot fill, or a global batch that the processes cannot share.
        """
        trainer = self._trainer()
        module: Any = trainer.lightning_module
        sinks = tuple(module.sink_ids)
        reserve = len(sinks) if self.reserve_sinks is None else self.reserve_sinks
        self._layout = Layout(self.packing, self.sequence_length, sinks, reserve)
        check_band(self.packing, getattr(module, "band", None))
        check_layout(self._layout, getattr(module, "longest_sample", module.trained_length))
        check_trainer(trainer)
        self._set_accumulation(trainer)
        texts = open_texts(self.folders, self._option, module.tokenizer_fingerprint, self.check_files)
        check_chats(texts, self._layout, self._option)
        wanted: list[Split] = [] if stage != "fit" or self.stream else ["train"]
        if trainer.limit_val_batches != 0:
            wanted.append("validation")
        self._order = order_of(texts if not self.stream else [], self._layout, self.seed)
        self._splits = {split: [self._rows(text, split) for text in texts] for split in wanted}
        if "train" in self._splits:
            needed = self.batch_size * self._readers()[0] * trainer.accumulate_grad_batches
            check_batch(sum(map(len, self._splits["train"])), needed, f"{self._option} {', '.join(self.folders)}")
        if not self.folders:
            trainer.limit_val_batches = 0
        if stage == "fit" and self.stream is not None:
            self._text = StreamedText(self.stream, module.tokenizer, self.seed)

    def _set_accumulation(self, trainer: L.Trainer) -> None:
        if self.global_batch_tokens is None:
            return
        given = trainer.accumulate_grad_batches
        if given not in (1, self._accumulation):
            raise UserError(
                f"--trainer.accumulate_grad_batches {given}: follows from --data.global_batch_tokens "
                f"{self.global_batch_tokens}; give one of the two."
            )
        self._accumulation = accumulation(
            self.global_batch_tokens, self.sequence_length, self.batch_size, self._readers()[0]
        )
        trainer.accumulate_grad_batches = self._accumulation

    def _rows(self, text: PreparedText, split: Split) -> Rows:
        rows = self._layout.rows(text, split)
        if not len(rows):
            raise UserError(
                f"{self._option} {text.folder}: its {split} text has {len(text.tokens(split))} tokens, fewer than a "
                f"sample of {self._layout.text_length}; prepare more text, or lower --data.sequence_length."
            )
        return rows

    def train_dataloader(self) -> Iterable[dict[str, Tensor]]:
        """Endless batches, from the trainer's step on."""
        _align_batch_count(self._trainer())
        if self._text is not None:
            batches = StreamedBatches(
                self._text, self._layout.text_length, self._layout.sinks, self._share(), self._stream_state
            )
            self._streamed = ResumableStream(batches, self.samples_used, self.num_workers)
            return self._streamed
        rows = self._splits["train"]
        order = Mixture([len(each) for each in rows], list(self.folders.values()), self.seed)
        return self._loader(rows, OrderedBatches(order, self._share()))

    def _share(self) -> Share:
        count, number = self._readers()
        return Share(self.batch_size, self.samples_used(), number, count)

    def _readers(self) -> tuple[int, int]:
        """How many groups of ranks take samples of their own, and the number of this one's.

        A group is one rank, but for tensor parallelism, whose ranks compute parts of the same samples.
        """
        trainer = self._trainer()
        share = getattr(trainer, "distributed_sampler_kwargs", None)
        if share is None:
            return trainer.world_size, trainer.global_rank
        return int(share["num_replicas"]), int(share["rank"])

    def val_dataloader(self) -> Iterable[dict[str, Tensor]]:
        """The validation text in order, or its first `validation_batches` batches, shared out over the ranks."""
        rows = self._splits["validation"]
        sizes, share = [len(each) for each in rows], self._share()
        most = None if self.validation_batches is None else self.validation_batches * self.batch_size
        picks = in_order(sizes, share, most)
        if not picks:
            raise UserError(
                f"{self._option} {', '.join(self.folders)}: its validation text has {sum(sizes)} samples of "
                f"--data.sequence_length {self.sequence_length} for {share.world_size} processes; prepare it with "
                "more --validation_fraction, or lower the sequence length."
            )
        return self._loader(rows, picks)

    def samples_used(self) -> int:
        """How many training samples all ranks together have used: where a resumed run goes on.

        Lightning restores the step from a checkpoint before it asks for the loader, and then takes the loader's
        batches from its first. So the loader itself begins behind what earlier steps used. Steps are counted as the
        optimizer took them: batches fetched ahead, or accumulated for a step that was never taken, come again.
        """
        trainer = self._trainer()
        per_step = trainer.accumulate_grad_batches * self.batch_size * self._readers()[0]
        return self._used + (trainer.global_step - self._step) * per_step

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint. Samples stand beside steps, for a run that goes on with other ranks or batches."""
        state: dict[str, Any] = {"step": self._trainer().global_step, "samples": self.samples_used()}
        state["order"] = self._order
        if self._streamed is not None:
            state["stream"] = self._streamed.state(state["samples"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint.

        Raises:
            UserError: its samples were others, or came in another order.
        """
        check_order(state_dict.get("order", {}), self._order)
        self._step, self._used = state_dict["step"], state_dict["samples"]
        self._stream_state = state_dict.get("stream")

    def _loader(self, rows: list[Rows], picks: Any) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            Batches(rows),
            sampler=picks,
            batch_size=None,  # an index is a whole batch already
            num_workers=self.num_workers,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # else every iterator draws from the one that dropout draws from
            # A forked worker shares the map of the tokens; any other kind would be sent a copy of the whole text.
            multiprocessing_context="fork" if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("SinkDataModule serves a Trainer; give it to `Trainer.fit(module, datamodule)`")
        return self.trainer


def _align_batch_count(trainer: L.Trainer) -> None:
    """Lets a resumed run begin with the first micro-batch of a step.

    Lightning takes a step when its count of batches is a multiple of the accumulation. In a run that goes on from
    inside a step, or with another accumulation than before, the restored count would end the first step early.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    behind = progress.current.processed - progress.current.completed  # 1 in what was saved at the end of a batch
    for count in (progress.current, progress.total):  # by the second one Lightning knows when to validate
        count.ready = count.started = count.processed = trainer.global_step * trainer.accumulate_grad_batches
        count.completed = count.processed - behind
