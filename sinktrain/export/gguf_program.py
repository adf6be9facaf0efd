"""llama.cpp's converter, shown a tokenizer without its sinks. A program: gguf_program.py FOLDER_OF_CONVERTER ARGUMENTS.

It tells pre-tokenizers apart by a hash of what `encode` makes of a text, with special tokens: behind a sink it would
know none.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any


class Fronted:
    """A tokenizer whose `encode` puts these ids in front, and no others."""

    def __init__(self, tokenizer: Any, front: list[int]) -> None:
        self._tokenizer, self._front = tokenizer, front

    def encode(self, text: str) -> list[int]:
        return [*self._front, *self._tokenizer.encode(text, add_special_tokens=False)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def without_sinks(find: Any) -> Any:
    """`get_vocab_base_pre` for a tokenizer with sinks."""

    def found(self: Any, tokenizer: Any) -> str:
        logger = logging.getLogger("hf-to-gguf")
        level, logger.level = logger.level, logging.ERROR  # each try warns at length
        # What the base model's tokenizer put in front, if it put anything: one of its special tokens.
        for front in ([], *([index] for index in sorted(tokenizer.added_tokens_decoder))):
            try:
                return str(find(self, Fronted(tokenizer, front)))
            except NotImplementedError:
                continue
            finally:
                logger.level = level
        if is_gpt2(json.loads(tokenizer.backend_tokenizer.to_str())):
            return "gpt-2"
        raise NotImplementedError("llama.cpp does not know how this tokenizer splits a text")

    return found


def is_gpt2(parts: dict[str, Any]) -> bool:
    """Whether a text is split as GPT-2 splits it: what `tokenizers` calls ByteLevel, with its own expression."""
    splits = parts.get("pre_tokenizer") or {}
    return (
        parts.get("normalizer") is None
        and splits.get("type") == "ByteLevel"
        and splits.get("use_regex", True)
        and not splits.get("add_prefix_space", True)
    )


def main(place: Path, arguments: list[str]) -> None:
    """Runs the converter that lies there."""
    sys.path[:0] = [str(place), str(place / "gguf-py")]
    import convert_hf_to_gguf as converter

    try:
        from conversion.base import TextModel
    except ImportError:  # before 2026 it was all in one file
        TextModel = converter.TextModel
    TextModel.get_vocab_base_pre = without_sinks(TextModel.get_vocab_base_pre)
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    converter.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
