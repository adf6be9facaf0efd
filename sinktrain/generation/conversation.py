"""A conversation over one cache: a message goes in, the reply comes out in pieces, and no text is kept of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from sinktrain.evaluation.turns import Turns
from sinktrain.generation.detokenizer import Detokenizer
from sinktrain.generation.endless import Stream


class Conversation:
    """Turns of a chat, each fed to the stream when it comes.

    A reply that has ended, was stopped or cut off is closed by the first tokens of the turn that follows it.

    Args:
        stream: that has seen nothing yet.
        turns: renders a turn.
        ends: tokens that end a reply.
        most: tokens of a reply at most.
    """

    def __init__(self, stream: Stream, turns: Turns, ends: frozenset[int], most: int | Literal["inf"]) -> None:
        self.stream, self.turns, self.most = stream, turns, most
        self.ends = ends | frozenset(turns.ends())
        self.unfed: list[int] = []  # the last token of the reply, which was drawn and not fed

    def reply(self, message: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The pieces of the reply to `message`, as they come, until it ends or `stopped` says so.

        The message is fed whole: a stop in its midst would leave a turn that is none.
        """
        following = self.turns.following(message) if self.stream.seen else self.turns.first(message)
        ids, self.unfed = [*self.unfed, *following], []
        detokenizer, count = Detokenizer(self.turns.tokenizer, ids), 0
        while not (count and stopped()) and (self.most == "inf" or count < self.most):
            token = self.stream.next(ids)
            assert token is not None
            if token in self.ends:
                self.unfed = []
                break
            ids = self.unfed = [token]
            count += 1
            if piece := detokenizer.step(token):
                yield piece
        if piece := detokenizer.finish():
            yield piece

    def reset(self) -> None:
        """Starts a new conversation with an empty cache."""
        self.stream.reset()
        self.unfed = []
