"""What a command says: lines on stdout, a progress bar on stderr where a person looks at it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinktrain.base.secrets import redact


def say(text: str) -> None:
    """Prints one line of what was done, without markup, wrapping and secrets, so that a script can read it.

    Where nobody reads any more, as behind `| head`, the work goes on in silence.
    """
    try:
        print(redact(text), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


@contextmanager
def progress(title: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, shown on a terminal only; yields a function that advances it.

    Args:
        title: what is being done.
        total: how many units there are; None when unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda amount: bars.advance(task, amount)


class Clock:
    """Says how far a long command is, and about how long it will take, in lines that a log can hold.

    Args:
        total: what there is to do, in any unit.
        every: seconds between two lines, at least; and a twentieth of the time so far, so that a log stays short.
    """

    def __init__(self, total: float, every: float = 10.0) -> None:
        self.total, self.every, self._done = total, every, 0.0
        self._began = self._said = time.monotonic()

    def say(self, amount: float, title: str) -> None:
        """Counts `amount` as done; a line, unless the last one was a moment ago or nothing is left."""
        self._done += amount
        now = time.monotonic()
        spent = now - self._began
        if self._done >= self.total or now - self._said < max(self.every, spent / 20):
            return
        self._said = now
        left = spent / self._done * (self.total - self._done)
        say(f"{title}: {self._done / self.total:.0%} in {duration(spent)}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever can be read."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
