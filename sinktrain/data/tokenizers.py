"""Text to tokens: a byte-level BPE trained on the source, and encoding in which memory stays flat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sinktrain.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
_BATCH = 2**21  # characters that are encoded at once: under 200 MB while they are tokens
_PIECE = 2**17  # characters of one long text that a thread encodes at once
_LINE_START = re.compile(r"(?<=\S\n)(?=\S)")


def train_bpe(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE, in which every text is spelled exactly and none is unknown.

    Args:
        texts: the documents to learn from.
        vocabulary: the number of tokens, with 256 bytes and `<|endoftext|>`; fewer are made when the text has no
            more pairs to merge.

    Raises:
        UserError: there is no room for the bytes and the end of text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 257:
        raise UserError(
            f"--train_tokenizer {vocabulary}: has no room for 256 bytes and {END_OF_TEXT}; use 257 or more."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[tuple[list[int], bool]]:
    """Yields the token ids of each text, a long text in several pieces, with True at the last piece of each.

    No special tokens are added. Batches are of a bounded size, and the tokenizer's own threads share each of them.
    """
    cut = _cuts_at_lines(tokenizer)
    batch: list[str] = []
    ends: list[bool] = []
    size = 0
    for text in texts:
        pieces = list(cut_at_lines(text, _PIECE)) if cut else [text]
        for number, piece in enumerate(pieces, start=1):
            batch.append(piece)
            ends.append(number == len(pieces))
            size += len(piece)
            if size >= _BATCH:
                yield from zip(_encode_batch(tokenizer, batch), ends, strict=True)
                batch, ends, size = [], [], 0
    if batch:
        yield from zip(_encode_batch(tokenizer, batch), ends, strict=True)


def cut_at_lines(text: str, size: int) -> Iterator[str]:
    """Cuts a text into pieces of about `size` characters, where a line without white space around its end begins.

    A piece is longer when no such place is found. A file of many gigabytes is thus tokenized in little memory.
    """
    start = 0
    while len(text) - start > size:
        found = _LINE_START.search(text, start + size)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _cuts_at_lines(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text cut between lines has the same tokens: not for one that puts a space in front of every text."""
    first, second, both = _encode_batch(tokenizer, ["One line,\n", "x = 2\n", "One line,\nx = 2\n"])
    return first + second == both


def _encode_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a document longer than the model is no mistake here
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
