"""The terminal of a chat, with keys from a pipe and the screen in a string."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from small_subjects import small_subject

from sinktrain.generation.endless import Stream, choose_cache, open_stream
from sinktrain.generation.sampling import Sampler, Sampling
from sinktrain.generation.terminal import Terminal


@pytest.fixture
def stream(tokenizer_folder: Path) -> Stream:
    subject = small_subject(tokenizer_folder)
    return open_stream(subject, choose_cache(subject, "1+15"), "cache", Sampler(subject, Sampling(0)))


def test_lines_are_edited_and_control_d_leaves(stream: Stream) -> None:
    with create_pipe_input() as keys:
        terminal = Terminal(stream, ["/stats"], source=keys, target=DummyOutput())
        keys.send_text("the cast\x1b[D\x7f\r")  # left, backspace: the cat
        keys.send_text("half a line\x03")  # Ctrl-C
        keys.send_text("/stats\r")
        keys.send_text("\x04")  # Ctrl-D
        assert list(terminal.messages()) == ["the cat", "/stats"]
        assert terminal.session.history.get_strings() == ["the cat", "/stats"]


def test_a_reply_is_shown_whole_and_the_status_is_taken_away(stream: Stream) -> None:
    text = "the [bold]cat[/bold] sat\n\n" + "on a mat and " * 9 + "\nhome"
    screen = io.StringIO()
    console = Console(file=screen, width=40, height=12, force_terminal=False)
    Terminal(stream, [], console, target=DummyOutput()).show(iter(text))
    shown = screen.getvalue()
    assert shown.split() == text.split()
    assert "\n\n" in shown and max(map(len, shown.splitlines())) <= 40


def test_the_status_line_is_live(stream: Stream) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, height=12, force_terminal=True)
    terminal = Terminal(stream, [], console, target=DummyOutput())

    def pieces() -> object:
        ids = [*stream.subject.sink_ids, 5, 6]
        for _ in range(30):
            token = stream.next(ids)
            ids = [token] if token is not None else []
            yield "x"

    terminal.show(pieces())  # type: ignore[arg-type]
    shown = screen.getvalue()
    assert "sinks 1/1, recent 3/15, 4 tokens seen, 0 evicted" in shown
    assert "sinks 1/1, recent 15/15, 32 tokens seen, 16 evicted" in shown
    assert "tokens/s" in shown
