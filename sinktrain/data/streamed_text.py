"""The tokens of a Hugging Face dataset, read without an end and from any place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.data.order import draw, permuted
from sinktrain.sinks.tokenizer import plain_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPTION = "--data.stream.name"
_GROUP = 2**18  # characters of the documents that are tokenized at once


@dataclass(frozen=True)
class HubStream:
    """A dataset to read while training, for text that does not fit the disk.

    Args:
        name: Of a Hugging Face dataset, or a folder of .jsonl or .parquet files.
        subset: Of the dataset.
        split: Of the dataset.
        field: The column that holds the text.
        shuffle_shards: Read the dataset's files in another order in each epoch, drawn by data.seed. Inside a file the
            order stays as it is: what a shuffle buffer holds is in no checkpoint, so it cannot be resumed exactly.
    """

    name: str
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    shuffle_shards: bool = True


class StreamedText:
    """The documents of a dataset as tokens, each followed by the end of text, over and over again.

    Args:
        stream: the dataset.
        tokenizer: the model's; its sinks are no words of the text.
        seed: of the order of files.

    Raises:
        UserError: no such dataset, no such field, or a tokenizer that is not backed by `tokenizers`.
    """

    def __init__(self, stream: HubStream, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        from datasets import load_dataset

        self._stream, self._seed = stream, seed
        backend = plain_backend(tokenizer)
        if backend is None:
            raise UserError(
                f"--data.stream: {type(tokenizer).__name__} is too slow for a stream; use a tokenizer with a "
                "tokenizer.json, or run `sinktrain prepare` and give --data.path."
            )
        self._backend = backend
        self._end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        with self._explain():
            self._dataset: Any = load_dataset(stream.name, stream.subset, split=stream.split, streaming=True)
            for row in self._dataset:
                self._text_of(row)
                break

    def read(self, place: dict[str, Any] | None) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """Tokens (n,) of some documents, and the place after them, from which this goes on with the next.

        Args:
            place: None for the beginning; else from here, plain values: epoch, number of the file in it, and what
                `datasets` says of the place inside the file.

        Raises:
            UserError: the dataset cannot be read, has no such field, or no text.
        """
        epoch, number, inside = (place["epoch"], place["number"], place["inside"]) if place else (0, 0, None)
        files = self._dataset.num_shards
        found = True
        while True:
            if number == files:
                if not found:
                    raise UserError(f"{OPTION} {self._stream.name}: holds no text; name a dataset with some.")
                epoch, number, found = epoch + 1, 0, False
            shard = self._shard(epoch, number, files)
            if inside is not None:
                shard.load_state_dict(inside)
            for texts in self._groups(shard):
                found = True
                yield self._tokens(texts), {"epoch": epoch, "number": number, "inside": shard.state_dict()}
            number, inside = number + 1, None

    def _shard(self, epoch: int, number: int, files: int) -> Any:
        if self._stream.shuffle_shards:
            number = int(permuted(number, files, draw(self._seed, epoch))[0])
        return self._dataset.shard(files, number)

    def _groups(self, shard: Any) -> Iterator[list[str]]:
        """Documents with some text, until they have `_GROUP` characters; nothing is read ahead of what is given."""
        rows = iter(shard)
        while True:
            texts: list[str] = []
            size = 0
            with self._explain():
                while size < _GROUP and (row := next(rows, None)) is not None:
                    text = self._text_of(row)
                    if text.strip():
                        texts.append(text)
                        size += len(text)
            if not texts:
                return
            yield texts

    def _text_of(self, row: dict[str, Any]) -> str:
        text = row.get(self._stream.field, 0)
        if text is None:
            return ""
        if not isinstance(text, str):
            have = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
            raise UserError(
                f"--data.stream.field {self._stream.field}: {self._stream.name} has no text of that name; choose from "
                f"{have}."
            )
        return text

    def _tokens(self, texts: list[str]) -> NDArray[np.int64]:
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return np.concatenate([np.array(one.ids + self._end, dtype=np.int64) for one in encoded])

    @contextmanager
    def _explain(self) -> Iterator[None]:
        """Turns what the hub, the network and the readers of files raise, each in its own way, into one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"{OPTION} {self._stream.name}: no dataset could be read by that name ({first}); check the name, "
                "--data.stream.subset, --data.stream.split and the network."
            ) from error
