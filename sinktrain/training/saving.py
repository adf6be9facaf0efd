"""The callback that saves and resumes: when, in which folder, behind the back of training."""

from __future__ import annotations

import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.terminal import say
from sinktrain.checkpoints import store
from sinktrain.checkpoints.store import Found
from sinktrain.training import resuming, snapshot
from sinktrain.training.notices import FAILED, SAVE, SIGNALS, SignalHandlers
from sinktrain.training.resuming import gather_text
from sinktrain.training.run_record import run_facts, run_folder
from sinktrain.training.throughput import not_training
from sinktrain.training.watchdog import mark
from sinktrain.training.writing import BackgroundWriter


class Checkpoints(L.Callback):
    """Saves what a run needs to go on bit by bit as if it had never stopped, and goes on from there.

    Training stands still while each rank copies its part into the host's memory; the files are written beside
    training. A checkpoint has its name only once all ranks have written, so a kill at any moment leaves the last one
    whole. It holds weights, optimizer, schedule, the place in the data, random numbers of every rank, config and the
    code's version, and suits any strategy and any number of ranks.

    Args:
        folder: where they lie; left out, `checkpoints` beside the run's logs, which is another place for every start.
            All machines must share it. A run that finds checkpoints there goes on from the newest valid one.
        every_n_steps: optimizer steps between two that are kept for good; left out, only the last of the run is.
        every_minutes: minutes between two temporary ones; 0 for none.
        keep: how many temporary ones are kept, 2 at least.
        asynchronous: write beside training; false lets training wait, and needs no memory for a copy.
        resume: `auto` goes on from the newest valid one in `folder`, `never` refuses a folder that has any, and a path
            names the checkpoint, or the folder of another run, to go on from.
        wait: seconds that rank 0 waits for the slowest rank to write; below watchdog.stuck_after.
    """

    def __init__(
        self,
        folder: str | None = None,
        every_n_steps: int | None = None,
        every_minutes: float = 30.0,
        keep: int = 2,
        asynchronous: bool = True,
        resume: str = "auto",
        wait: float = 600.0,
    ) -> None:
        at_least("checkpoints.keep", keep, 2)
        at_least("checkpoints.every_minutes", every_minutes, 0)
        if every_n_steps is not None:
            at_least("checkpoints.every_n_steps", every_n_steps, 1)
        self.folder = None if folder is None else Path(folder)
        self.every_n_steps, self.every_minutes, self.keep = every_n_steps, every_minutes, keep
        self.asynchronous, self.resume = asynchronous, resume
        self.last: Path | None = None
        """The checkpoint that this run wrote last."""
        self.blocked = 0.0
        """Seconds that training stood still for saves."""
        self._writer = BackgroundWriter(wait, keep)
        self._resumed: Found | None = None
        self._store: Path = Path()
        self._handlers: SignalHandlers | None = None
        self._asked = self._begun = self._told = False
        self._saved_at: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the folder, the same on all ranks, and what is in it."""
        if stage == "fit":
            _check(trainer)
            self.going_on_from(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Another fit looks into the folder anew; signals are whose they were, in a run with nothing left to do too."""
        if self._handlers is not None:
            self._handlers.remove()
        self._asked = self._begun = self._told = False

    def going_on_from(self, trainer: L.Trainer) -> Found | None:
        """The checkpoint that this run goes on from; all ranks ask."""
        if self._asked:
            return self._resumed
        self._asked = True
        beside = run_folder(trainer)
        default = (beside or Path(trainer.default_root_dir)) / "checkpoints"
        self._store = Path(trainer.strategy.broadcast(str(self.folder or default)))
        self._attempt = trainer.strategy.broadcast(secrets.token_hex(4))
        self._resumed = resuming.choose(trainer, self._store, self.resume)
        return self._resumed

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Goes on from a checkpoint, if there is one."""
        if self._resumed is not None:
            snapshot.restore(trainer, self._resumed, lambda: mark(trainer, "reading the checkpoint"))
            self.last = self._resumed.path
            if 0 <= trainer.max_steps <= trainer.global_step and trainer.is_global_zero:
                say(f"all of --trainer.max_steps {trainer.max_steps} are made: nothing is left to do")
            self._saved_at = trainer.global_step if self._resumed.path.parent == self._store else None
        if trainer.is_global_zero:
            with suppress(OSError):  # a folder that cannot be written to is told of below
                self._clear_up()
        trainer.strategy.barrier()
        self._writer.listen(trainer, pl_module.notices, self._attempt)

        # From here on: Lightning's own handlers exchange tensors from inside of a handler, on one rank alone.
        self._handlers = SignalHandlers(pl_module.notices)
        self._handlers.install()
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def _clear_up(self) -> None:
        """Removes drafts of earlier starts, and puts out of the way what is newer than what this run goes on from."""
        store.clean(self._store)
        if self._resumed is not None and self._resumed.path.parent == self._store:
            for each in store.found(self._store):
                if each.step > self._resumed.step:
                    store.pass_over(each)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Starts the clock of temporary checkpoints, and finds out whether the folder can be written to."""
        self._clock = time.monotonic()
        self._writer.begin(self._store)
        self._settle(trainer)
        self._run = run_facts(trainer) if trainer.is_global_zero else {}
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # a broadcast before every batch, which waits for the device

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Between two optimizer steps, validation of the last one included: saves if it is time."""
        if self._resumed is not None and not self._begun:
            # Not earlier: what comes before the first batch draws random numbers of its own.
            snapshot.restore_random(self._resumed, trainer, _seed(trainer))
        self._begun = True
        if batch_idx % trainer.accumulate_grad_batches:
            return
        words, step = pl_module.notices.read(), trainer.global_step
        signals = [each for each in SIGNALS if each.name in words]
        permanent = self.every_n_steps is not None and step % self.every_n_steps == 0
        if step not in (0, self._saved_at) and (permanent or signals or SAVE in words):
            self.save(trainer, permanent)
        if signals:
            self._leave(trainer, signals[0])
        if FAILED in words:
            self._writer.give_up()
            self._settle(trainer)
        if not self._told and self._is_due(trainer):
            pl_module.notices.give(SAVE)
            self._told = True  # on a GPU it is two steps until the save

    def _is_due(self, trainer: L.Trainer) -> bool:
        """By rank 0's clock, which the others learn of with the sums of the next step."""
        waited = time.monotonic() - self._clock
        return trainer.is_global_zero and self.every_minutes > 0 and waited > 60 * self.every_minutes

    def _leave(self, trainer: L.Trainer, number: signal.Signals) -> None:
        """Ends the process as the signal would have, once the checkpoint is whole."""
        assert self._handlers is not None
        self._handlers.ignore(trainer)
        self._settle(trainer)
        if trainer.is_global_zero:
            say(f"stopped by {number.name} after step {trainer.global_step}; checkpoint: {self.last}")
        raise SystemExit(128 + number)

    def save(self, trainer: L.Trainer, permanent: bool = True) -> None:
        """Saves now; all ranks call it. Returns when training may go on.

        Raises:
            UserError: the save before this one failed.
        """
        begun = time.perf_counter()
        with not_training(trainer):
            self._settle(trainer)
            taken = snapshot.take(trainer, self._run)
            self._saved_at, self._clock, self._told = taken.step, time.monotonic(), False
            facts = {
                "permanent": permanent,
                "strategy": type(trainer.strategy).__name__,
                "samples": taken.documents.get(snapshot.STATE, {}).get("data", {}).get("samples"),
                "written": time.time(),
            }
            self._writer.start(store.Draft(self._store, taken.step, self._attempt), taken, facts)
            if not self.asynchronous:
                self._settle(trainer)
        self.blocked += time.perf_counter() - begun

    def _settle(self, trainer: L.Trainer) -> None:
        """Returns when the last checkpoint is written by all ranks and has its name; all ranks call it together.

        Raises:
            UserError: one of them could not write it; its draft is gone, and what was there before is as it was.
        """
        is_first = trainer.is_global_zero
        # Rank 0 waits for the others' files; so it hears first whether they will come.
        everyone = gather_text(trainer, "" if is_first else self._writer.join())
        if any(everyone):
            self._writer.give_up()
        everyone[0] = trainer.strategy.broadcast(self._writer.join() if is_first else "")
        for rank, problem in enumerate(everyone):
            if problem:
                if trainer.is_global_zero:
                    store.clean(self._store)
                raise UserError(
                    f"checkpoints.folder {self._store}: rank {rank} could not write ({problem}); make room or choose "
                    f"another. {_newest(self._store)}"
                )
        self.last = self._writer.last or self.last

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last step, if it is not yet."""
        if self._saved_at != trainer.global_step and trainer.global_step > 0:
            self.save(trainer)
        self._settle(trainer)
        if self._handlers is not None:
            self._handlers.remove()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lets what is being written come to its end, or to none if other ranks no longer write."""
        self._writer.give_up(patience=10.0)
        self._writer.join()
        if self._handlers is not None:
            self._handlers.remove()


def _check(trainer: Any) -> None:
    """Refuses what a checkpoint would not keep, and a wait that the watchdog would not let end."""
    for callback in trainer.callbacks:
        if type(callback).on_save_checkpoint is not L.Callback.on_save_checkpoint:
            raise UserError(
                f"trainer.callbacks {type(callback).__name__}: has a state that checkpoints of sinktrain do not keep "
                "(on_save_checkpoint); use one with a state_dict, or set trainer.enable_checkpointing to false."
            )
    if str(trainer.precision).startswith("16"):
        raise UserError(
            f"trainer.precision {trainer.precision}: its loss scale is not kept in checkpoints; use bf16-mixed."
        )


def _seed(trainer: Any) -> int:
    return int(getattr(trainer.datamodule, "seed", 0))


def _newest(folder: Path) -> str:
    for each in store.found(folder):
        return f"The checkpoint {each.path} is as it was."
    return "There is no earlier checkpoint."
