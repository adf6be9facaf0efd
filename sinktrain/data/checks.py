"""What is refused before anything expensive starts: text named twice or not at all, or that does not fit the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError
from sinktrain.data.mixture import thousandths
from sinktrain.data.packing import Layout, Packing
from sinktrain.data.prepared import PreparedText, files_of
from sinktrain.data.streamed_text import HubStream

if TYPE_CHECKING:
    import lightning as L


def check_choice(
    path: str | None, sources: Mapping[str, float] | None, stream: HubStream | None, packing: Packing, workers: int
) -> None:
    """Refuses what names no text, or names it twice, or cannot be streamed.

    Raises:
        UserError: one of these.
    """
    if path is not None and sources is not None:
        raise UserError("--data.path, --data.sources: give one of them, a prepared folder or several with weights.")
    if path is None and sources is None and stream is None:
        raise UserError("--data.path: is missing; name a folder that `sinktrain prepare` made.")
    if sources is not None:
        _check_weights(sources)
    if stream is None:
        return
    if packing != "chunk":
        raise UserError(f"--data.packing {packing}: needs prepared text; use chunk with --data.stream.")
    if workers > 1:
        raise UserError(f"--data.num_workers {workers}: a stream has one reader; use 0 or 1 with --data.stream.")


def _check_weights(sources: Mapping[str, float]) -> None:
    if not sources:
        raise UserError("--data.sources: is empty; name prepared folders with their weights.")
    for folder, weight in sources.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"--data.sources {folder}: its weight is {weight}; give a number above 0, or leave it out.")
    for folder, count in zip(sources, thousandths(list(sources.values())), strict=True):
        if not count:
            raise UserError(
                f"--data.sources {folder}: its weight is under a thousandth of all; give it more, or leave it out."
            )


def check_layout(layout: Layout, trained_length: int | None) -> None:
    """Refuses samples without room for text, for the model's sinks, or in the model of that `trained_length`.

    Raises:
        UserError: one of these.
    """
    length, sinks, reserve = layout.length, len(layout.sinks), layout.reserve
    if reserve < sinks:
        raise UserError(f"--data.reserve_sinks {reserve}: is fewer than the model's {sinks}; use {sinks} or more.")
    if length < reserve + 2:
        raise UserError(f"--data.sequence_length {length}: must be at least {reserve + 2}, {reserve} of it for sinks.")
    if trained_length is not None and length > trained_length:
        raise UserError(
            f"--data.sequence_length {length}: is above the {trained_length} positions that the model was trained for; "
            f"use {trained_length} or less."
        )


def check_band(packing: Packing, band: object) -> None:
    """Refuses packed documents for a model that is trained with the band of a cache, `band`, or None.

    Raises:
        UserError: there is a band.
    """
    if band is not None and packing == "document":
        raise UserError(
            f"--data.packing document: packs texts that do not see each other, which --model.band {band} cannot; use "
            "--data.packing chunk, or leave --model.band out."
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Refuses settings of the Trainer under which the order of samples would be another.

    Raises:
        UserError: one of these.
    """
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UserError(
            "--trainer.use_distributed_sampler true: would deal the samples out a second time; set it to false."
        )
    if trainer.limit_train_batches != 1.0:
        raise UserError(
            f"--trainer.limit_train_batches {trainer.limit_train_batches}: would train on the same batches again "
            "and again, since the order of samples never ends; set --trainer.max_steps instead."
        )


def check_batch(samples: int, needed: int, name: str) -> None:
    """Refuses a text that would repeat itself inside one step.

    Args:
        samples: how many training samples there are.
        needed: samples of a global batch.
        name: the option and the folders.

    Raises:
        UserError: there are fewer than needed.
    """
    if samples < needed:
        raise UserError(
            f"{name}: holds {samples} training samples, fewer than one global batch of {needed}; prepare more text, or "
            "lower --data.batch_size, --data.sequence_length or the accumulation."
        )


def order_of(texts: Sequence[PreparedText], layout: Layout, seed: int) -> dict[str, Any]:
    """What decides which sample is the s-th, as plain values, for a checkpoint."""
    return {
        "sequence_length": layout.length,
        "packing": layout.packing,
        "reserve_sinks": layout.reserve,
        "seed": seed,
        "text": [
            [text.manifest["files"][name]["sha256"] for name in files_of("train", text.is_chat)] for text in texts
        ],
    }


def check_chats(texts: Sequence[PreparedText], layout: Layout, option: str) -> None:
    """Refuses conversations that would be cut anywhere, or whose special tokens have the place of the model's sink.

    A tokenizer that was given more special tokens spells ordinary text as before, so its fingerprint tells nothing.

    Raises:
        UserError: one of these.
    """
    for text in texts:
        if not text.is_chat:
            continue
        if layout.packing == "chunk":
            raise UserError(
                f"--data.packing chunk: would cut the conversations of {text.folder} anywhere; use document."
            )
        if layout.sinks and text.manifest["tokenizer"]["vocabulary"] > min(layout.sinks):
            raise UserError(
                f"{option} {text.folder}: was made with the tokenizer {text.manifest['tokenizer']['name']}, which has "
                "more special tokens than the model's; run `sinktrain prepare` with the model's tokenizer."
            )


def check_order(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with other samples than those that a checkpoint counted.

    Raises:
        UserError: they are others.
    """
    for name, value in before.items():
        if name == "text" and now[name] != value:
            raise UserError(
                "--data.path: is another text than the one that the checkpoint has counted samples of; give that one, "
                "or begin a new run from an export (--model.name)."
            )
        if now[name] != value:
            raise UserError(
                f"--data.{name} {now[name]}: was {value} in the checkpoint, whose count of samples it would change; "
                "give that, or begin a new run from an export (--model.name)."
            )


def open_texts(folders: Mapping[str, float], option: str, fingerprint: str, whole: bool) -> list[PreparedText]:
    """Opens prepared folders, all made with the model's tokenizer.

    Args:
        folders: their names.
        option: the option that named them.
        fingerprint: of the model's tokenizer.
        whole: compare checksums too, not only sizes.

    Raises:
        UserError: no prepared text, files that are not what the manifest says, or another tokenizer.
    """
    texts = [PreparedText(folder, option) for folder in folders]
    for text in texts:
        text.check_tokenizer(fingerprint)
        if whole:
            text.check_files()
    return texts
