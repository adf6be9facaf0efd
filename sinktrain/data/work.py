"""A preparation on disk: begun, taken up where a run before it was stopped, and complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinktrain.base.errors import UserError
from sinktrain.base.folders import Draft
from sinktrain.base.terminal import say
from sinktrain.data.conversations import Template
from sinktrain.data.dealing import deal
from sinktrain.data.journal import Done, Journal
from sinktrain.data.prepared import Tokens
from sinktrain.data.shards import Shards, records
from sinktrain.data.splitting import tokenize
from sinktrain.data.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Work:
    """What a preparation writes until its manifest.

    Args:
        draft: where it writes.
        out: the folder that will be made, for the error messages.
        settings: everything that decides what is written, by the names of the options.
        template: of conversations; None for text.

    Attributes:
        done: how far it is.
        fingerprint: of the tokenizer, and
        vocabulary: its size, and
        dtype: of a token on disk; all three are known once `take_up` was called.
        records: the file of what is remembered of each document.
    """

    def __init__(self, draft: Draft, out: Path, settings: dict[str, Any], template: Template | None = None) -> None:
        self.done = Done()
        self.fingerprint, self.vocabulary = "", 0
        self.dtype: np.dtype[Tokens] = np.dtype("<u2")
        self.records = draft.notes / "documents"
        self._draft, self._out, self._settings, self._template = draft, out, settings, template
        self._journal = Journal(draft.notes / "journal.jsonl")

    def take_up(self, make: Callable[[], PreTrainedTokenizerBase], overwrite: bool) -> PreTrainedTokenizerBase:
        """Finds out how far a run before this one came, and begins anew where there is none.

        Args:
            make: loads or trains the tokenizer; one that was trained before is kept.
            overwrite: what was begun with other settings is removed.

        Raises:
            UserError: it was begun with other settings, and `overwrite` is false.
        """
        from sinktrain.base.models import fingerprint, load_tokenizer

        found, done = self._journal.read()
        goes_on = self._goes_on(found, overwrite)
        own = self._draft.result / "tokenizer"
        made = load_tokenizer(str(own), option="--train_tokenizer") if goes_on and own.is_dir() else make()
        self.fingerprint, self.vocabulary = fingerprint(made), self._vocabulary(made)
        self.dtype = np.dtype("<u2" if self.vocabulary < 2**16 else "<u4")
        self._settings |= {
            "tokenizer's fingerprint": self.fingerprint,
            "vocabulary": self.vocabulary,
            "eos_id": made.eos_token_id,
        }
        if goes_on and self._goes_on(found, overwrite):
            self.done = done
            self._draft.keep = any(done.documents)
            return made
        if self._settings["train_tokenizer"] is not None:
            made.save_pretrained(self._draft.notes / "tokenizer")
            (self._draft.notes / "tokenizer").replace(own)
        self._journal.begin(self._settings)
        return made

    def _vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """One more than the highest token that can occur; in a conversation, sinks do not."""
        known = tokenizer.get_vocab() if self._template is None else self._template.backend.get_vocab()
        return max(known.values()) + 1

    def _goes_on(self, found: dict[str, Any] | None, overwrite: bool) -> bool:
        """Whether what was begun is what is wanted. What is not wanted is removed, or the user is told."""
        others = [key for key, value in self._settings.items() if found is not None and found.get(key) != value]
        if found is not None and not others:
            return True
        if others and not overwrite:
            self._draft.keep = True
            raise UserError(
                f"--out {self._out}: was begun with other settings ({', '.join(others)}) by a run that was stopped; "
                "give the same again to go on from there, or pass --overwrite true to begin anew."
            )
        self._draft.clear()
        return False

    def tokenize(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, fraction: float, seed: int, most: int | None
    ) -> None:
        """Writes the tokens of all documents that are not done, and deals them to training and validation.

        Args:
            texts: of the whole source.
            tokenizer: what `take_up` returned.
            fraction: of the documents, for validation.
            seed: of the documents' hashes.
            most: the number of documents for the progress bar, if it is known.

        Raises:
            UserError: the source has no text, or only one text, or is not what it was.
        """
        with self._shards() as shards:
            try:
                if not shards.done.complete:
                    entries = texts.entries(fraction, seed, shards.done, self._hashes(), self._draft.result.parent)
                    tokenize(entries, tokenizer, shards, self.dtype, most, self._template)
                    shards.finish_shard(Done(texts.rows, texts.empty, alone=texts.alone, complete=True))
            finally:
                self.done = shards.done
                self._draft.keep = any(self.done.documents)
        if 0 in self.done.documents and not deal(self._draft.result, self.records, self.dtype, fraction):
            self._draft.keep = False
            raise UserError(
                f"--source {texts.source}: all of its {sum(self.done.documents)} documents are the same text, so none "
                "can be held out; name a source with different documents."
            )

    def _shards(self) -> Shards:
        files = self._draft.result, self.records, self.dtype, self._journal
        chat = self._template is not None
        try:
            shards = Shards(*files, self.done, chat)
        except ValueError as error:
            say(f"What a run before this one left is damaged ({error}), so this one begins anew.")
            self._journal.begin(self._settings)
            return Shards(*files, Done(), chat)
        if any(self.done.documents):
            documents, tokens = sum(self.done.documents), sum(self.done.tokens)
            say(f"Going on from where a run was stopped: {documents:,} documents, {tokens:,} tokens are done already.")
        return shards

    def _hashes(self) -> Iterator[int]:
        return (int(key) for block in records(self.records) for key in block["hash"])
