"""Notices that a rank has died or hangs, says which, and ends the others: a collective alone would wait for ever."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

import lightning as L
import torch.distributed

from sinktrain.base.errors import UserError, at_least
from sinktrain.training.notices import SIGNALS

dist: Any = torch.distributed  # whose stubs leave out its stores
_VERDICT = "verdict"
_STOPPED = {128 + number for number in SIGNALS}
_SILENT = "the store that the ranks met at does not answer; rank 0, or its machine or launcher, has died or is stopped"
STATUS = 70
"""The exit status of ranks that the watchdog ends (EX_SOFTWARE of sysexits.h)."""


class Watchdog(L.Callback):
    """Ends all ranks when one of them has died, failed or got stuck, with a message that names it.

    A thread of each rank tells the others every second, through the store that the ranks met at, that the process is
    there and how far it has come in the program. A rank that hears nothing of another for `dead_after` seconds takes it
    for dead. When no rank has come any further for `stuck_after` seconds, the one that is furthest behind hangs: the
    others wait for it. Each rank then writes where its threads are to standard error, and ends with status 70.

    Nothing happens on the hot path but the counting of hooks. With one process there is nothing to watch.

    Args:
        stuck_after: seconds without any progress; above the longest step, compilation and save.
        dead_after: seconds without a sign of life.
    """

    def __init__(self, stuck_after: float = 900.0, dead_after: float = 20.0) -> None:
        at_least("watchdog.stuck_after", stuck_after, 1)
        at_least("watchdog.dead_after", dead_after, 2)
        self.stuck_after, self.dead_after = stuck_after, dead_after
        self._count, self._place = 0, "starting"
        self._pulse: Pulse | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to watch."""
        if trainer.world_size > 1:
            self._pulse = Pulse(trainer, self)
            self._pulse.start()

    def mark(self, place: str) -> None:
        """The program has come this far."""
        self._count += 1
        self._place = place

    @property
    def place(self) -> tuple[int, str]:
        """How far, and where."""
        return self._count, self._place

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Marks."""
        self.mark(f"the forward pass of step {trainer.global_step}")

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
        """Marks."""
        self.mark(f"the backward pass of step {trainer.global_step}")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Marks."""
        self.mark(f"the update of step {trainer.global_step}")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Marks."""
        self.mark(f"the data, callbacks or checkpoint after step {trainer.global_step}")

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Marks."""
        self.mark(f"validation after step {trainer.global_step}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks; other callbacks save now."""
        self.mark("the end of training")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watches no longer."""
        if self._pulse is not None:
            self._pulse.stop("done")
            self._pulse = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tells the other ranks, which cannot go on. Does not return where this rank failed because another did."""
        if self._pulse is None:
            return
        agreed = isinstance(exception, SystemExit) and exception.code in _STOPPED
        if agreed:  # all ranks stop for a signal
            self._pulse.stop("done")
        elif isinstance(exception, (UserError, KeyboardInterrupt, SystemExit)):
            self._pulse.stop(f"failed: {exception or 'interrupted'}")
        else:
            self._pulse.fail(exception)


def mark(trainer: Any, place: str) -> None:
    """Tells the watchdog of a Trainer, if it has one, that the program has come this far."""
    for callback in trainer.callbacks:
        if isinstance(callback, Watchdog):
            callback.mark(place)


class Pulse(threading.Thread):
    """The thread of a rank that tells of it, and listens to the others."""

    def __init__(self, trainer: L.Trainer, watchdog: Watchdog) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._watchdog, self._rank, self._ranks = watchdog, trainer.global_rank, trainer.world_size
        self._launcher: Any = trainer.strategy.launcher
        key: str = trainer.strategy.broadcast(f"sinktrain/watchdog/{time.time_ns()}")
        self._store = dist.PrefixStore(key, _connection())
        self._state, self._over = "", threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}  # of each rank, what it said last and when that was new
        self._moved, self._places = time.monotonic(), dict[int, int]()

    def run(self) -> None:
        """Until it is over."""
        self._tell()
        while not self._over.wait(1.0):
            answers = threading.Timer(self._watchdog.dead_after + 5, self._end, [_SILENT])
            answers.daemon = True
            answers.start()
            try:
                self._tell()
                wrong = self._look()
            except Exception as error:  # the store is gone, and so is the process that kept it
                if not self._over.is_set():
                    wrong = f"rank 0, or the launcher that the ranks met at, has died ({error})".splitlines()[0]
                    self._end(wrong)
                return
            finally:
                answers.cancel()
            if wrong:
                self._end(wrong)

    def _tell(self) -> None:
        count, place = self._watchdog.place
        word = {"count": count, "place": place, "state": self._state, "time": time.time(), "host": socket.gethostname(),
                "process": os.getpid()}  # fmt: skip
        self._store.set(str(self._rank), json.dumps(word))

    def _look(self) -> str:
        """What is wrong, or nothing. Rank 0 looks at all; the others at it, and at what it has found."""
        now, words = time.monotonic(), dict[int, dict[str, Any]]()
        if self._rank != 0 and self._store.check([_VERDICT]):
            return str(self._store.get(_VERDICT).decode())
        for rank in range(self._ranks) if self._rank == 0 else (0, self._rank):
            if not self._store.check([str(rank)]):
                continue  # it has not begun
            text = self._store.get(str(rank)).decode()
            words[rank] = json.loads(text)
            if self._seen.get(rank, ("", 0.0))[0] != text:
                self._seen[rank] = (text, now)
        for rank, word in words.items():
            who = f"rank {rank} (process {word['process']} on {word['host']})"
            if word["state"].startswith("failed"):
                return f"{who} has {word['state']}"
            silent = now - self._seen[rank][1]
            if silent > self._watchdog.dead_after and word["state"] != "done":
                return f"{who} has died or is stopped: no sign of life for {silent:.0f} s, last seen in {word['place']}"
        return self._stuck(words, now) if self._rank == 0 else ""

    def _stuck(self, words: dict[int, dict[str, Any]], now: float) -> str:
        """Which rank the others wait for in vain, or nothing."""
        places = {rank: int(word["count"]) for rank, word in words.items()}
        if places != self._places or len(words) < self._ranks or all(word["state"] for word in words.values()):
            self._moved, self._places = now, places
        still = now - self._moved
        if still <= self._watchdog.stuck_after:
            return ""
        behind = min(places.values())
        names = [f"rank {rank} (process {word['process']} on {word['host']}) in {word['place']}"
                 for rank, word in words.items() if places[rank] == behind]  # fmt: skip
        if len(names) == self._ranks:
            return f"all ranks hang at the same place, {names[0].partition(' in ')[2]}: no progress for {still:.0f} s"
        return f"{' and '.join(names)} hangs: no progress for {still:.0f} s, and the others wait for it"

    def fail(self, exception: BaseException) -> None:
        """This rank cannot go on: waits a moment for who was the first, and ends the process."""
        told = "".join(traceback.format_exception(exception)).rstrip()
        connection = "onnection" in str(exception) or "peer" in str(exception) or "NCCL" in str(exception)
        if connection:  # another rank is the cause; the thread finds out which
            print(told, file=sys.stderr, flush=True)
            self._over.wait(self._watchdog.dead_after + 5)
            self._end("a rank is gone, and it could not be found out which")
        print(told, file=sys.stderr, flush=True)
        self.stop(f"failed: {type(exception).__name__}: {str(exception).splitlines()[0] if str(exception) else ''}")
        self._kill(1)

    def stop(self, state: str) -> None:
        """Tells the others a last time."""
        self._state = state
        self._over.set()
        try:
            self._tell()
        except Exception:
            return  # the others are gone

    def _end(self, wrong: str) -> None:
        print(f"sinktrain fit: rank {self._rank} ends: {wrong}", file=sys.stderr, flush=True)
        if self._rank == 0 and not self._over.is_set():
            self._store.set(_VERDICT, wrong)
            time.sleep(3)  # with this process, the store may go
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        self._kill(STATUS)

    def _kill(self, status: int) -> None:
        """Ends this process at once, with those that it has started: its main thread may never return."""
        for child in multiprocessing.active_children():
            child.kill()
        for child in getattr(self._launcher, "procs", []):
            child.send_signal(signal.SIGKILL)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _connection() -> Any:
    """A connection of its own to where the ranks met: the main thread's may be held by a call that never returns."""
    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):
        return dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return store
