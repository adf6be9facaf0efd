"""The wall time of training alone."""

from __future__ import annotations

from collections.abc import Callable


class Stopwatch:
    """Measures laps of training, without what happens in between, and how much of them is waiting for data.

    Args:
        clock: seconds, from any origin.

    Attributes:
        waited: seconds of this lap that went by waiting for data.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun, self._away, self.waited = clock(), 0.0, 0.0
        self._depth, self._left, self._asked = 0, 0.0, 0.0

    def pause(self) -> None:
        """What follows is not training; pauses may stand inside each other."""
        if self._depth == 0:
            self._left = self._clock()
        self._depth += 1

    def resume(self) -> None:
        """Ends a pause."""
        self._depth -= 1
        if self._depth == 0:
            self._away += self._clock() - self._left

    def ask(self) -> None:
        """The loop asks the loader for a batch."""
        self._asked = self._clock()

    def get(self) -> None:
        """The batch is there."""
        self.waited += self._clock() - self._asked

    def lap(self) -> float:
        """Seconds of training since the last lap; `waited` begins anew as well."""
        now = self._clock()
        seconds = now - self._begun - self._away
        self._begun, self._away, self.waited = now, 0.0, 0.0
        return seconds
