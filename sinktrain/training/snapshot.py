"""What a run is at the boundary of two optimizer steps: taken from a Trainer, and given back to another."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import sinktrain
from sinktrain.base.errors import UserError
from sinktrain.checkpoints.pieces import Piece, Place
from sinktrain.checkpoints.reader import Reader
from sinktrain.checkpoints.store import Found
from sinktrain.data.order import draw
from sinktrain.training import zero
from sinktrain.training.checkpoints import MODEL, RUN, check_record, checkpoint_record
from sinktrain.training.plain import random_state, set_random_state, with_tensors, without_tensors
from sinktrain.training.slots import slots

if TYPE_CHECKING:
    import lightning as L

STATE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """Copies in the host's memory, so that training may go on while they are written.

    Attributes:
        step: of the optimizer.
        pieces: what this rank holds, or was dealt of what all hold.
        rank_state: of this rank alone: its random numbers.
        documents: JSON files that rank 0 adds.
    """

    step: int
    pieces: list[Piece]
    rank_state: dict[str, Any]
    documents: dict[str, Any]


def take(trainer: L.Trainer, run: dict[str, Any]) -> Snapshot:
    """Copies what a checkpoint keeps; `run` is its config and the state of the code. All ranks call it."""
    module: Any = trainer.lightning_module
    module._step.tell()  # steps that were left out and not told of yet
    rank = trainer.global_rank
    pieces = []
    for number, slot in enumerate(slots(module)):
        if slot.copies == 1 or number % slot.copies == rank % slot.copies:
            pieces.append(Piece(slot.name, slot.place, slot.values.to("cpu", copy=True)))
    tensors: dict[str, Tensor] = {}
    rank_state = without_tensors(random_state(), f"rank/{rank}", tensors)
    documents = {}
    if rank == 0:
        try:
            state = without_tensors(_state(trainer, module), "state", tensors)
        except TypeError as error:
            raise UserError(f"trainer.callbacks: the state of one cannot be kept in a checkpoint ({error}).") from error
        record = checkpoint_record(module.model, module.tokenizer, module.sink, module.tuning)
        documents = {MODEL: record, STATE: state, RUN: {"version": sinktrain.__version__, **run}}
    pieces += [Piece(name, Place.whole(tensor.shape), tensor.clone()) for name, tensor in tensors.items()]
    return Snapshot(trainer.global_step, pieces, rank_state, documents)


def _state(trainer: Any, module: Any) -> dict[str, Any]:
    data = trainer.datamodule
    return {
        "step": trainer.global_step,
        "loops": trainer.fit_loop.state_dict(),
        "schedule": [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs],
        "data": data.state_dict() if data is not None else {},
        "guard": module._step.guard.state_dict(),
        "callbacks": {callback.state_key: state for callback in trainer.callbacks if (state := callback.state_dict())},
    }


def restore(trainer: Any, checkpoint: Found, progress: Callable[[], None]) -> None:
    """Gives a Trainer that is set up, and has not begun, what a checkpoint holds. All ranks call it.

    `progress` is called for each tensor.

    Raises:
        UserError: the checkpoint is of another model or sink, or something else of it was trained.
    """
    module, reader = trainer.lightning_module, Reader(checkpoint.path)
    record = checkpoint.document(MODEL)
    check_record({"sinktrain": record}, module.sink, module.tuning)
    with torch.no_grad():
        for slot in slots(module):
            reader.read_into(slot.values, slot.name, slot.place)
            progress()
    optimizer = trainer.optimizers[0]
    if zero.engine(trainer) is not None:
        zero.spread(optimizer)
    state = with_tensors(checkpoint.document(STATE), reader.whole)
    trainer.fit_loop.load_state_dict(state["loops"])
    if trainer.datamodule is not None:
        trainer.datamodule.load_state_dict(state["data"])
    module._guard_state = state["guard"]
    for config, steps in zip(trainer.lr_scheduler_configs, state["schedule"], strict=True):
        _wind(config.scheduler, steps)
    for callback in trainer.callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])


def _wind(schedule: Any, steps: int) -> None:
    """Puts a schedule behind so many steps. The learning rate is that of its own config, not of the checkpoint's."""
    schedule.last_epoch, schedule._step_count = steps, steps + 1
    rates = [base * factor(steps) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def restore_random(checkpoint: Found, trainer: Any, seed: int) -> None:
    """Sets this rank's generators to what they were; with another number of ranks, to new ones, drawn by the seed.

    The ranks of a tensor-parallel group compute parts of the same samples, and need the same numbers.
    """
    if checkpoint.manifest()["ranks"] == trainer.world_size:
        rank: int = trainer.global_rank
        reader = Reader(checkpoint.path, f"rank-{rank:05d}")
        set_random_state(with_tensors(checkpoint.rank_state(rank), reader.whole))
        return
    share = trainer.distributed_sampler_kwargs or {"rank": 0}
    key = int(draw(seed, checkpoint.step, share["rank"])[0] >> 32)
    random.seed(key)
    np.random.seed(key)
    torch.manual_seed(key)
