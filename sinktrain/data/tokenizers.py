"""Text to tokens: a byte-level BPE trained on the source, and encoding in which memory stays flat."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.data.prepared import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpellOne: TypeAlias = Callable[[str], NDArray[Tokens]]
SpellMany: TypeAlias = Callable[[list[str]], list[NDArray[Tokens]]]

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

END_OF_TEXT = "<|endoftext|>"
_BATCH = 2**20  # characters that are encoded at once, on a machine of up to 16 cores
_PIECE = 2**15  # characters of one long text that a thread encodes at once
_RUNNING = 2  # batches being encoded: the cores that one leaves idle at its end work on the other
_CONTEXT = 64  # characters on either side of a cut that show whether it changes a token
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


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], dtype: np.dtype[Tokens]
) -> Iterator[tuple[NDArray[Tokens], bool]]:
    """Yields the tokens of each text, a long text in several pieces, with True at the last piece of each.

    No special tokens are added. All cores encode while the caller reads and writes: the tokenizer's own threads share
    each batch, and the next batches wait already. Batches are of a bounded size and few, so memory stays flat. A slow
    tokenizer, which is written in Python, runs in the caller's thread.

    Args:
        tokenizer: fast or slow.
        texts: are taken a few batches ahead of what is yielded.
        dtype: of the arrays.
    """
    spell_one, spell, is_parallel = _spellers(tokenizer, dtype)
    batches = _batches(texts, spell_one)

    def spelled(batch: tuple[list[str], list[bool]]) -> list[tuple[NDArray[Tokens], bool]]:
        return list(zip(spell(batch[0]), batch[1], strict=True))

    for pieces in in_background(batches, spelled) if is_parallel else map(spelled, batches):
        yield from pieces


def in_background(batches: Iterable[_Given], work: Callable[[_Given], _Made]) -> Iterator[_Made]:
    """What `work` makes of each batch, in order; the next ones are worked on while the caller uses the last."""
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(_RUNNING, "encode") as pool:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > _RUNNING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(texts: Iterable[str], spell: SpellOne) -> Iterator[tuple[list[str], list[bool]]]:
    """Pieces of texts in batches, and for each piece whether it is its text's last."""
    cuts = _cuts_at_lines(spell)
    most = max(_BATCH, 2 * _PIECE * (os.cpu_count() or 1))
    batch: list[str] = []
    ends: list[bool] = []
    size = 0
    for text in texts:
        pieces = list(cut_at_lines(text, _PIECE, spell)) if cuts else [text]
        for number, piece in enumerate(pieces, start=1):
            batch.append(piece)
            ends.append(number == len(pieces))
            size += len(piece)
            if size >= most:
                yield batch, ends
                batch, ends, size = [], [], 0
    if batch:
        yield batch, ends


def cut_at_lines(text: str, size: int, spell: SpellOne | None = None) -> Iterator[str]:
    """Cuts a text into pieces of about `size` characters, where a line without white space around its end begins.

    A piece is longer when no such place is found. A file of many gigabytes is thus tokenized in little memory.

    Args:
        text: of any length.
        size: of a piece, in characters.
        spell: gives the tokens of a text; a place where they would change is no place to cut. (The tokenizer of
            gpt-oss, for example, has a token for a full stop, a line's end and a slash.)
    """
    start = 0
    while len(text) - start > size:
        places = (found.start() for found in _LINE_START.finditer(text, start + size))
        place = next((place for place in places if spell is None or _changes_nothing(text, place, spell)), None)
        if place is None:
            break
        yield text[start:place]
        start = place
    yield text[start:]


def _changes_nothing(text: str, place: int, spell: SpellOne) -> bool:
    before, after = text[max(place - _CONTEXT, 0) : place], text[place : place + _CONTEXT]
    first, second, both = (spell(part) for part in (before, after, before + after))
    return np.array_equal(np.concatenate([first, second]), both)


def _cuts_at_lines(spell: SpellOne) -> bool:
    """Whether a text cut between lines has the same tokens: not for one that puts a space in front of every text."""
    return _changes_nothing("One line,\nx = 2\n", len("One line,\n"), spell)


def _spellers(tokenizer: PreTrainedTokenizerBase, dtype: np.dtype[Tokens]) -> tuple[SpellOne, SpellMany, bool]:
    """What gives the tokens of one text and of many, and whether it uses all cores, beside the caller's thread."""
    from transformers import PreTrainedTokenizerFast

    def slow(texts: list[str]) -> list[NDArray[Tokens]]:
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a document longer than the model is no mistake here
        )
        return [np.array(ids, dtype=dtype) for ids in encoded["input_ids"]]

    slow(["text"])  # this also switches the backend's own padding and truncation off
    if getattr(type(tokenizer), "_encode_plus", None) is not PreTrainedTokenizerFast._encode_plus:
        return (lambda text: slow([text])[0]), slow, False  # it does something of its own around the backend, if any
    backend = tokenizer.backend_tokenizer

    def one(text: str) -> NDArray[Tokens]:  # unlike a batch of one, this waits for no thread of the pool
        return np.array(backend.encode(text, add_special_tokens=False).ids, dtype=dtype)

    def many(texts: list[str]) -> list[NDArray[Tokens]]:
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.fromiter(found.ids, dtype, len(found)) for found in encoded]

    return one, many, True
