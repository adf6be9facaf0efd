"""Which checkpoint a run goes on from: the newest that is whole, agreed on by all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say
from sinktrain.checkpoints.store import MANIFEST, Found, found

if TYPE_CHECKING:
    import lightning as L


def choose(trainer: L.Trainer, store: Path, resume: str) -> Found | None:
    """The checkpoint to go on from, or None; rank 0 says which, and why newer ones were passed over.

    Args:
        trainer: its ranks check together: each reads a share of the files.
        store: the folder of the run.
        resume: as in `Checkpoints`.

    Raises:
        UserError: what was named holds no whole checkpoint; or `resume` is `never`, and the folder has some.
    """
    named = None if resume in ("auto", "never") else Path(resume)
    if named is not None and not _is_inside(named, store) and trainer.strategy.broadcast(bool(found(store))):
        named = None  # where the run began; a scheduler starts it again with the same options
    one = named is not None and (named / MANIFEST).is_file()
    candidates = [Found(named, 0)] if named is not None and one else found(named or store)
    paths: list[str] = trainer.strategy.broadcast([str(each.path) for each in candidates])
    if resume == "never" and paths:
        raise UserError(
            f"checkpoints.folder {store}: holds checkpoints, and checkpoints.resume is never; choose another folder, "
            "or let it go on with auto."
        )
    passed: list[str] = []
    for path in map(Path, paths):
        wrong = _problem(trainer, Found(path, 0))
        if wrong is None:
            step = int(Found(path, 0).manifest()["step"])
            if named is not None:
                _refuse_newer(trainer, store, step, path)
            for sentence in passed:
                _say(trainer, f"passed over {sentence}")
            _say(trainer, f"going on from {path}, step {step}")
            return Found(path, step)
        passed.append(f"{path}: {wrong}")
    if passed:
        raise UserError(
            f"checkpoints.folder {named or store}: no checkpoint in it is whole ({'; '.join(passed)}); name another "
            "with checkpoints.resume, or begin anew in another folder."
        )
    if named is not None:
        raise UserError(f"checkpoints.resume {named}: holds no checkpoint; name a step-... or a folder of them.")
    return None


def _is_inside(named: Path, store: Path) -> bool:
    return store.resolve() in (named.resolve(), named.resolve().parent)


def _refuse_newer(trainer: L.Trainer, store: Path, step: int, path: Path) -> None:
    """A run that branches off from the middle of another would be taken for it, or it for the run."""
    newest: int = trainer.strategy.broadcast(max((each.step for each in found(store)), default=0))
    if newest > step:
        raise UserError(
            f"checkpoints.folder {store}: holds step {newest}, and checkpoints.resume {path} is step {step}; choose "
            "another folder, or move the newer ones away."
        )


def _problem(trainer: L.Trainer, candidate: Found) -> str | None:
    """What is wrong with a checkpoint, the same answer on all ranks."""
    try:
        candidate.check(trainer.global_rank, trainer.world_size)
        mine = ""
    except ValueError as error:
        mine = str(error)
    except OSError as error:
        mine = f"cannot be read ({error.strerror})"
    return next(filter(None, gather_text(trainer, mine)), None)


def gather_text(trainer: L.Trainer, mine: str) -> list[str]:
    """What each rank says, in their order; all ranks call it."""
    everyone = [mine] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _say(trainer: L.Trainer, sentence: str) -> None:
    if trainer.is_global_zero:
        say(sentence)
