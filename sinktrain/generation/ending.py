"""Ways to end: Ctrl-C and SIGTERM between two tokens, and a reader that has gone away."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sinktrain.base.secrets import redact


@dataclass
class Signalled:
    """Which signal has come, if any."""

    number: int | None = None

    def __call__(self) -> bool:
        """Whether one has come."""
        return self.number is not None


@contextmanager
def signals_noted() -> Iterator[Signalled]:
    """Inside the block, the first SIGINT or SIGTERM is only noted: half a forward would leave the cache half written.

    A second one does what it did before the block, so that a program that hangs can be ended.
    """
    noted = Signalled()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        noted.number = number
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ends the block without an error when who reads our standard output has closed it, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        # What is left in the buffer must go somewhere when Python flushes it at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write(text: str) -> None:
    """Writes to standard output at once."""
    if not text:
        return
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:  # a terminal that is not UTF-8
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def note(text: str) -> None:
    """Writes a line to standard error: what is said about the text, and is not the text."""
    print(redact(text), file=sys.stderr, flush=True)
