"""The verb `chat`: many turns over one cache that is never reset."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

from sinktrain.base.errors import UserError, at_least
from sinktrain.evaluation.subject import ModelOptions, load_subject
from sinktrain.evaluation.turns import Turns, end_ids
from sinktrain.generation.conversation import Conversation
from sinktrain.generation.ending import note, reader_may_leave, signals_noted, write
from sinktrain.generation.endless import cautions, choose_cache, open_stream
from sinktrain.generation.generate import Endless
from sinktrain.generation.sampling import Sampler, Sampling
from sinktrain.generation.statistics import statistics
from sinktrain.streaming import PositionRule

COMMANDS = {
    "/reset": "start a new conversation with an empty cache",
    "/stats": "show tokens, pace, cache and memory",
    "/help": "show this",
    "/quit": "leave; so does Ctrl-D, while Ctrl-C stops a reply only",
}
"""What can be typed instead of a message."""


def chat(
    model: ModelOptions,
    system: str | None = None,
    cache: str | None = None,
    rule: PositionRule = "cache",
    max_tokens: int | Endless = 1024,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
) -> int:
    """Talks with a model for as long as you like: a turn costs what it says, however long the conversation is.

    On a terminal, lines are edited, and the bottom line shows the cache. Otherwise each line of standard input is a
    message, and replies go to standard output and nothing else does. `/help` lists the commands; Ctrl-C stops a reply.

    Args:
        model: The model to talk with; it needs a chat template that appends turn after turn.
        system: What the model is told before the conversation; by default what its chat template says.
        cache: The cache, x+y (x sinks and the y most recent tokens), or `dense` for no eviction. By default, x is the
            number of sinks that the model was trained with, or 4 for a model without, and y is what fills 1024, or
            the trained length if that is shorter.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        max_tokens: How many tokens a reply may have; `inf` for no end.
        temperature: What the logits are divided by; 0 takes the most probable token each time.
        top_k: Draw from that many of the most probable tokens only; 0 for all.
        top_p: Draw from the most probable tokens that make up this probability together; 1 for all.
        seed: Of the random numbers.

    Returns:
        The exit status: 0, or 143 for SIGTERM during a reply.
    """
    if max_tokens != "inf":
        at_least("--max_tokens", max_tokens, 1)
    sampling = Sampling(temperature, top_k, top_p, seed)
    subject = load_subject(model)
    turns = Turns(subject, system)
    spec = choose_cache(subject, cache)
    for caution in cautions(subject, spec):
        note(f"warning: {caution}")
    stream = open_stream(subject, spec, rule, Sampler(subject, sampling))
    conversation = Conversation(stream, turns, end_ids(subject), max_tokens)
    try:
        with reader_may_leave():
            talk(conversation, _front(conversation))
    finally:
        note(statistics(stream))
    return 0


class Front(Protocol):
    """Where messages come from and replies go to."""

    def messages(self) -> Iterable[str]:
        """The messages and commands, until the end of the input."""

    def show(self, pieces: Iterator[str]) -> None:
        """Shows a reply as it comes."""


def talk(conversation: Conversation, front: Front) -> None:
    """Answers messages and obeys commands until `/quit` or the end of the input.

    Raises:
        SystemExit: with 143, for a SIGTERM during a reply.
    """
    for line in front.messages():
        message = line.strip()
        if message == "/quit":
            return
        if message.startswith("/"):
            _obey(conversation, message)
        elif message:
            with signals_noted() as signalled:
                front.show(conversation.reply(message, signalled))
            if signalled.number == signal.SIGTERM:
                sys.exit(128 + signal.SIGTERM)


def _obey(conversation: Conversation, command: str) -> None:
    if command == "/reset":
        conversation.reset()
        note("a new conversation, with an empty cache")
    elif command == "/stats":
        note(statistics(conversation.stream))
    else:
        if command != "/help":
            note(f"{command.split()[0]} is no command.")
        note("\n".join(f"{name:<8}{meaning}" for name, meaning in COMMANDS.items()))


class Pipe:
    """One message a line from standard input, replies to standard output, each ended by a line break."""

    def messages(self) -> Iterator[str]:
        """The lines.

        Raises:
            UserError: they are not UTF-8.
        """
        for line in sys.stdin.buffer:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError("standard input: is not UTF-8; convert it first.") from error

    def show(self, pieces: Iterator[str]) -> None:
        """Writes the pieces as they come."""
        for piece in pieces:
            write(piece)
        write("\n")


def _front(conversation: Conversation) -> Front:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Pipe()
    from sinktrain.generation.terminal import Terminal

    return Terminal(conversation.stream, list(COMMANDS))
