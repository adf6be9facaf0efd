"""A text in a model's tokens: where its documents begin, and how many bytes it spells."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """A text of T tokens, without any sink.

    Attributes:
        name: by which it was asked for.
        tokens: (T,).
        documents: (T,) int32, the number of each token's document; None for a single one.
        spelled: its documents as strings, UTF-8; empty where nobody needs their bytes.
        whole: whether the last of them is there to its end, and an end-of-text token says so.
    """

    name: str
    tokens: Tensor
    documents: Tensor | None = None
    spelled: tuple[str, ...] = ()
    whole: bool = True

    @property
    def document_of(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """(T,) the number of each token's document."""
        if self.documents is None:
            return np.zeros(len(self.tokens), np.int32)
        return self.documents.to(torch.int32).numpy()

    @property
    def description(self) -> dict[str, Any]:
        """What the results say of the text; texts with one `spelling` can be compared whatever the tokenizer."""
        digest = hashlib.sha256(self.tokens.to(torch.int64).numpy().tobytes()).hexdigest()
        spelling = "\0".join(self.spelled).encode()
        return {
            "name": self.name,
            "tokens": len(self.tokens),
            "sha256": digest,
            "documents": len(np.unique(self.document_of)),
            "bytes": len(spelling) - max(0, len(self.spelled) - 1) if self.spelled else None,
            "spelling": hashlib.sha256(spelling).hexdigest() if self.spelled else None,
        }


def load_text(name: str, tokenizer: PreTrainedTokenizerBase, tokens: int, skip: int = 0) -> Text:
    """The first `tokens` tokens after `skip` of a text.

    Args:
        name: a folder made by `sinktrain prepare` (its validation part is taken, which training never saw), or a
            source of text as `sinktrain prepare --source` takes it.
        tokenizer: the model's.
        tokens: how many to take.
        skip: how many to leave out first.

    Raises:
        UserError: no such text, made with another tokenizer, or too short.
    """
    if (Path(name) / "manifest.json").is_file():
        found, documents = _prepared_tokens(name, tokenizer, tokens, skip)
    else:
        found, documents = (part[skip:] for part in _source_tokens(name, tokenizer, skip + tokens))
    if len(found) < tokens:
        raise UserError(f"text {name}: has {len(found)} tokens after skip {skip}; ask for at most that with --tokens.")
    return Text(name, found, documents, _spell(found, documents, tokenizer), int(found[-1]) == tokenizer.eos_token_id)


def respell(text: Text, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The same text, byte for byte, in the tokens of another tokenizer."""
    ids, documents = _encode(text.spelled, tokenizer, None)
    if not text.whole and int(ids[-1]) == tokenizer.eos_token_id:  # nobody could foresee the end of a text that was cut
        ids, documents = ids[:-1], documents[:-1]
    return Text(text.name, ids, documents, text.spelled, text.whole)


def _prepared_tokens(name: str, tokenizer: PreTrainedTokenizerBase, tokens: int, skip: int) -> tuple[Tensor, Tensor]:
    from sinktrain.data.prepared import PreparedText

    prepared = PreparedText(Path(name))
    prepared.check_tokenizer(fingerprint(tokenizer))
    found = torch.from_numpy(prepared.tokens("validation")[skip : skip + tokens].astype("int64"))
    starts = prepared.documents("validation")
    place = np.arange(skip, skip + len(found))
    return found, torch.from_numpy((np.searchsorted(starts, place, side="right") - 1).astype("int32"))


def _source_tokens(name: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Tensor, Tensor]:
    from sinktrain.data.sources import documents

    try:
        ids, numbers = _encode(documents(name), tokenizer, limit)
    except UserError as error:
        raise UserError(str(error).replace("--source", "--text", 1)) from error
    return ids[:limit], numbers[:limit]


def _encode(documents: Any, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> tuple[Tensor, Tensor]:
    """Tokens and document numbers of strings, each with the end-of-text token behind it, up to about `limit`."""
    from sinktrain.data.tokenizers import encode

    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    ids, numbers, number = array("i"), array("i"), 0  # 4 bytes a token, where a list has 36
    for piece, is_last in encode(tokenizer, documents, np.dtype(np.uint32)):
        ids.extend(piece.tolist())
        if is_last:
            ids.extend(end)
        numbers.extend([number] * (len(ids) - len(numbers)))
        number += is_last
        if limit is not None and len(ids) >= limit:
            break
    return torch.tensor(ids, dtype=torch.long), torch.tensor(numbers, dtype=torch.int32)


def _spell(tokens: Tensor, documents: Tensor, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The documents as strings; what ends one is no part of it."""
    end = tokenizer.eos_token_id
    spelled = []
    for piece in tokens.split(documents.unique_consecutive(return_counts=True)[1].tolist()):
        ids = piece.tolist()
        ids = ids[:-1] if ids and ids[-1] == end else ids
        spelled.append(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)))
    return tuple(spelled)
