"""What a command says: lines on stdout, a progress bar on stderr where a person looks at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinktrain.base.secrets import redact


def say(text: str) -> None:
    """Prints one line of what was done, without markup, wrapping and secrets, so that a script can read it."""
    print(redact(text), flush=True)


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
