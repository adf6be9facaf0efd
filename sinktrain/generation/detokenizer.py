"""Tokens become text as they come, whole characters only, with a memory of a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from sinktrain.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 8
"""Tokens before the first that decide whether it begins with a space, where a tokenizer has it depend on them."""

PATIENCE = 32
"""Tokens to wait for a character to become whole. No character has as many; a model that babbles bytes does."""


class Detokenizer:
    """The text of a stream of tokens, equal to `tokenizer.decode` of all of them.

    Args:
        tokenizer: of the model.
        before: the tokens before the first, whose text is not repeated.
        special: also write special tokens, such as `<|endoftext|>`.

    Raises:
        UserError: the tokenizer is not backed by `tokenizers`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = (), special: bool = False) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"model.name: {type(tokenizer).__name__} cannot turn tokens into text one by one; "
                "use a model with a tokenizer.json."
            )
        self.backend, self.special = backend, special
        self._begin(before)

    def step(self, token: int) -> str:
        """The text that `token` completes; empty while a character is not whole."""
        self.waiting.append(token)
        try:
            text = self.stream.step(self.backend, token)
        except Exception:  # of the class Exception itself, when the decoder changes what it has said already
            text = self._give_up()
        if text is None and len(self.waiting) >= PATIENCE:
            text = self._give_up()
        elif text is not None:
            self.waiting.clear()
        return text or ""

    def finish(self) -> str:
        """The text of tokens that still wait for others, with U+FFFD for what is no character."""
        return self._give_up() if self.waiting else ""

    def _begin(self, before: Sequence[int]) -> None:
        self.waiting: list[int] = []
        self.stream = DecodeStream(ids=list(before[-CONTEXT:]), skip_special_tokens=not self.special)

    def _give_up(self) -> str:
        """Writes what waits as it is."""
        text = str(self.backend.decode(self.waiting, skip_special_tokens=not self.special))
        self._begin(self.waiting)
        return text
