"""What ranks tell each other between two optimizer steps: signals, and that it is time to save.

A rank may hear of a signal alone, or before the others; but all must save after the same step. So what a rank has heard
goes with the sums of its next step, which are exchanged anyway, and all act on what came out: no exchange of its own,
no wait. (Lightning broadcasts a flag before every batch, and waits for it.)
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from types import FrameType
from typing import Any

import torch
from torch import Tensor

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAVE, FAILED = "save", "failed"
_WORDS = (*(each.name for each in SIGNALS), SAVE, FAILED)
COUNT = len(_WORDS)


class Notices:
    """Words that any rank may raise, and that all ranks learn of after the same step."""

    def __init__(self) -> None:
        self._mine: set[str] = set()
        self._on_the_way: deque[tuple[Tensor, Any]] = deque()
        self._none: Tensor | None = None

    def give(self, word: str) -> None:
        """Tells all ranks; a signal handler may call it."""
        self._mine.add(word)

    def mine(self, device: torch.device) -> Tensor:
        """What this rank adds to the sums of a step: (COUNT,) float32, of zeros but for what was given."""
        given, self._mine = self._mine, set()
        if given:
            return torch.tensor([float(word in given) for word in _WORDS], device=device)
        if self._none is None or self._none.device != device:
            self._none = torch.zeros(COUNT, device=device)
        return self._none

    def arrived(self, sums: Tensor) -> None:
        """Takes the sums (COUNT,) over all ranks of a step, without waiting for them."""
        if sums.device.type != "cuda":
            self._on_the_way.append((sums.detach().to("cpu", copy=True), None))
            return
        copy = torch.empty(COUNT, pin_memory=True).copy_(sums, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._on_the_way.append((copy, event))

    def read(self) -> set[str]:
        """Words of the steps so far that were not read yet; all ranks call it after the same steps.

        On a GPU those of the last step are left for the next call: it may still be at work on that step, which the host
        shall not wait for.
        """
        words: set[str] = set()
        while self._on_the_way and (self._on_the_way[0][1] is None or len(self._on_the_way) > 1):
            sums, event = self._on_the_way.popleft()
            if event is not None:
                event.synchronize()
            words |= {word for word, value in zip(_WORDS, sums.numpy(), strict=True) if value}
        return words


class SignalHandlers:
    """Turns signals into notices while training; a second Ctrl-C does what it did before.

    Args:
        notices: that are given.
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Takes over from whoever handled them; only the main thread may."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def remove(self) -> None:
        """Gives them back."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def ignore(self, trainer: Any) -> None:
        """Ignores them from now on: the process is ending because of one, and others of its kind may still come."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self._before = {}
        trainer._signal_connector._original_handlers = {}  # Lightning would put these back

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._notices.give(signal.Signals(number).name)
        before = self._before.get(signal.Signals(number))
        if number == signal.SIGINT and before is not None:
            signal.signal(number, before)  # a second Ctrl-C does not wait
