"""Writes checkpoints beside training, in a thread: this rank's part, and on rank 0 the whole."""

from __future__ import annotations

import threading
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError
from sinktrain.checkpoints import store
from sinktrain.training.notices import FAILED, Notices
from sinktrain.training.snapshot import Snapshot

if TYPE_CHECKING:
    import lightning as L


class GivenUpError(Exception):
    """Another rank could not write, so this one need not wait for it."""


class BackgroundWriter:
    """One checkpoint at a time.

    Args:
        wait: seconds that rank 0 waits for the slowest rank.
        keep: temporary checkpoints to keep.

    Attributes:
        last: the checkpoint that was written last, on rank 0.
    """

    def __init__(self, wait: float, keep: int) -> None:
        self.last: Path | None = None
        self._wait, self._keep = wait, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._rank, self._ranks = 0, 1
        self._notices, self._attempt = Notices(), ""

    def listen(self, trainer: L.Trainer, notices: Notices, attempt: str) -> None:
        """Says who this rank is, how to tell the others of a failure, and which start of the run this is."""
        self._rank, self._ranks, self._notices = trainer.global_rank, trainer.world_size, notices
        self._attempt = attempt

    def begin(self, folder: Path) -> None:
        """Finds out at once whether a folder can be written to, and notes there whose it is now; see `join`."""
        try:
            if self._rank == 0:
                store.claim(folder, self._attempt, first=True)
        except OSError as error:
            self._error = error

    def start(self, draft: store.Draft, taken: Snapshot, facts: dict[str, Any]) -> None:
        """Begins to write; `join` comes first if something is being written."""
        self._over.clear()
        self._thread = threading.Thread(target=self._run, args=(draft, taken, facts), name="checkpoint")
        self._thread.start()

    def _run(self, draft: store.Draft, taken: Snapshot, facts: dict[str, Any]) -> None:
        try:
            if self._rank == 0:
                store.claim(draft.final.parent, self._attempt, first=False)
            draft.write_rank(self._rank, taken.pieces, taken.rank_state)
            if self._rank == 0:
                self.last = draft.publish(self._ranks, taken.documents, facts, self._wait, self._alive)
                self._prune(draft.final.parent)
        except BaseException as error:
            self._error = error
            self._notices.give(FAILED)

    def _prune(self, folder: Path) -> None:
        try:
            store.prune(folder, self._keep)
        except OSError as error:  # the new one is whole all the same
            warnings.warn(f"checkpoints.folder {folder}: old ones cannot be removed ({error})", stacklevel=2)

    def _alive(self) -> None:
        if self._over.is_set():
            raise GivenUpError

    def give_up(self, patience: float = 0.0) -> None:
        """Does not wait for other ranks any longer than so many seconds."""
        if self._thread is not None and patience:
            self._thread.join(patience)
        self._over.set()

    def join(self) -> str:
        """Returns when nothing is being written: what went wrong, in words, or nothing."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is None or isinstance(error, GivenUpError):
            return ""
        if isinstance(error, OSError):
            return error.strerror or str(error) or type(error).__name__
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        return str(error) or type(error).__name__
