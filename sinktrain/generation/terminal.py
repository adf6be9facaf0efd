"""The terminal of a chat: a line editor, replies as they come, and the state of the cache at the bottom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sinktrain.generation.endless import Stream
from sinktrain.generation.statistics import status_line

PROMPT = "> "


class Terminal:
    """Reads messages from a person and shows them the replies.

    Args:
        stream: whose state the bottom line shows.
        commands: what Tab completes.
        console: where replies go; by default standard output.
        source: of the keys, by default the terminal.
        target: of the line editor, by default the terminal.
    """

    def __init__(
        self,
        stream: Stream,
        commands: Sequence[str],
        console: Console | None = None,
        source: Input | None = None,
        target: Output | None = None,
    ) -> None:
        self.stream = stream
        self.console = console or Console(highlight=False)
        self.session: PromptSession[str] = PromptSession(
            PROMPT,
            history=InMemoryHistory(),  # nothing of a conversation is written to disk
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            bottom_toolbar=lambda: status_line(self.stream),
            input=source,
            output=target,
        )

    def messages(self) -> Iterator[str]:
        """The lines that are typed, until Ctrl-D; Ctrl-C clears a line."""
        while True:
            try:
                yield self.session.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def show(self, pieces: Iterator[str]) -> None:
        """Shows the pieces as they come, above the status line.

        Rows that are complete are printed for good. Only the last is drawn again and again, so that a reply of any
        length costs the same a token.
        """
        row = Text()
        with Live(self._bottom(row), console=self.console, transient=True, auto_refresh=False) as live:
            for piece in pieces:
                row.append(piece)
                *complete, row = row.wrap(self.console, self.console.width)
                for line in complete:
                    line.rstrip()
                    self.console.print(line)
                live.update(self._bottom(row), refresh=True)
        if row.plain:
            self.console.print(row)

    def _bottom(self, row: Text) -> Group:
        status = Text(status_line(self.stream), style="reverse", no_wrap=True, overflow="ellipsis")
        return Group(row, status)
