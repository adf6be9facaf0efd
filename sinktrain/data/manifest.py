"""What a preparation says of itself: the manifest of its folder, and lines for who started it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain import __version__
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.data.dealing import describe
from sinktrain.data.prepared import CHAT_SCHEMA, MANIFEST, SCHEMA, SPLITS, PreparedText, sha256
from sinktrain.data.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_manifest(
    folder: Path, work: Work, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, name: str
) -> dict[str, Any]:
    """Writes where documents start, then the manifest, and returns it.

    Args:
        folder: what becomes the prepared folder.
        work: complete.
        settings: what is kept of the options.
        tokenizer: that made the tokens.
        name: its own.
    """
    splits = describe(folder, work.records)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        "schema": CHAT_SCHEMA if settings["chat"] else SCHEMA,
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


def is_made(out: Path, settings: dict[str, Any], tokenizer: str | None) -> bool:
    """Whether a prepared folder is there that was made with these options."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = PreparedText(out, "--out").manifest
    named: bool = manifest["tokenizer"]["name"] == redact(tokenizer or "tokenizer")
    return named and {"chat": False, **manifest["source"]} == redact(settings)


def tell(out: Path, manifest: dict[str, Any]) -> None:
    """Says what was made."""
    train, validation = (manifest["splits"][split] for split in SPLITS)
    tokenizer, chat = manifest["tokenizer"], manifest["source"]["chat"]
    documents, skipped = "documents", "empty documents"
    if chat:
        documents, skipped = "conversations", "conversations without a turn of the assistant"
    if manifest["held_out"] != "documents":
        say("There is one document only, so its tail is held out for validation.")
    say(
        f"Tokenized {manifest['source']['name']} with {tokenizer['name']} ({tokenizer['vocabulary']:,} tokens): "
        f"{train['tokens']:,} tokens in {train['documents']:,} {documents} for training, {validation['tokens']:,} in "
        f"{validation['documents']:,} for validation; {manifest['empty_documents']:,} {skipped} skipped."
    )
    if chat:
        say(
            f"The assistant's turns are {train['trained'] / train['tokens']:.0%} of the tokens for training; only they "
            "are trained on."
        )
    elif tokenizer["eos_id"] is None:
        say("The tokenizer has no end-of-text token, so documents follow one another without a mark between them.")
    say(f"Wrote {out}")
