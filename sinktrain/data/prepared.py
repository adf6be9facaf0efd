"""A folder that `sinktrain prepare` made, opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.errors import UserError
from sinktrain.base.paths import inside

Split = Literal["train", "validation"]
Tokens: TypeAlias = np.uint16 | np.uint32
_Kept = TypeVar("_Kept", bound=np.generic)
SPLITS: tuple[Split, Split] = ("train", "validation")
MANIFEST = "manifest.json"
SCHEMA = 1
CHAT_SCHEMA = 2  # with files of what is trained on: who does not know these would train on everything
_AGAIN = "run `sinktrain prepare` again"


class PreparedText:
    """The tokens of a prepared folder. They stay on disk: what is read is mapped into memory, by all processes at once.

    Args:
        folder: what `sinktrain prepare --out` named.
        option: the option that named it, for the error message.

    Attributes:
        folder: the same.
        manifest: what `manifest.json` says: source and settings, tokenizer, counts, checksums.

    Raises:
        UserError: it is no prepared folder, it is of another version, or a file has another size than it had.
    """

    def __init__(self, folder: Path | str, option: str = "--data.path") -> None:
        self.folder = Path(folder)
        self._name = f"{option} {folder}"
        self.manifest = self._read_manifest()
        for name, expected in self.manifest["files"].items():
            self._check_size(name, expected["bytes"])
        for split in SPLITS:
            tokens = self.manifest["splits"][split]["tokens"]
            self._check_size(f"{split}.bin", tokens * self.dtype.itemsize)
            if self.is_chat:
                self._check_size(trained_file(split), tokens)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            schema = manifest["schema"]
            if schema in (SCHEMA, CHAT_SCHEMA):
                _check_entries(manifest)
        except OSError as error:
            raise UserError(f"{self._name}: is not prepared text; run `sinktrain prepare` to make it.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._name}: its {MANIFEST} is damaged; {_AGAIN}.") from error
        if schema not in (SCHEMA, CHAT_SCHEMA):
            known = f"versions {SCHEMA} and {CHAT_SCHEMA}"
            raise UserError(f"{self._name}: has version {schema}, and this sinktrain reads {known}; {_AGAIN}.")
        return dict(manifest)

    def _check_size(self, name: str, expected: int) -> None:
        path = inside(self.folder, name, self._name, links=True)
        if not path.is_file():
            raise UserError(f"{self._name}: its {name} is missing; {_AGAIN}.")
        if path.stat().st_size != expected:
            sizes = f"has {path.stat().st_size:,} bytes where the manifest says {expected:,}"
            raise UserError(f"{self._name}: its {name} {sizes}; {_AGAIN}.")

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations, in which the assistant's turns alone are trained on."""
        return bool(self.manifest["schema"] == CHAT_SCHEMA)

    @property
    def dtype(self) -> np.dtype[Tokens]:
        """Of a token on disk: uint16, or uint32 for a vocabulary of 65,536 and more."""
        dtype: np.dtype[Tokens] = np.dtype(self.manifest["dtype"])
        return dtype

    @property
    def tokenizer(self) -> str:
        """The tokenizer's name for `--model.tokenizer`: the one trained here, or the name that `prepare` was given."""
        own = self.folder / "tokenizer"
        return str(own) if own.is_dir() else str(self.manifest["tokenizer"]["name"])

    def tokens(self, split: Split) -> NDArray[Tokens]:
        """All tokens of a split, one document after another: (tokens,), mapped and read-only."""
        return open_tokens(self.folder / f"{split}.bin", self.dtype)

    def documents(self, split: Split) -> NDArray[np.int64]:
        """Where each document of a split starts in its tokens: (documents,) int64, the first is 0."""
        try:
            starts: NDArray[np.int64] = np.load(self.folder / f"{split}.documents.npy", allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{self._name}: its {split}.documents.npy is damaged; {_AGAIN}.") from error
        return starts

    def trained(self, split: Split) -> NDArray[np.uint8] | None:
        """Which tokens of a split are trained on: (tokens,), 1 or 0, mapped; None where all are."""
        return open_tokens(self.folder / trained_file(split), np.dtype("u1")) if self.is_chat else None

    def check_files(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            UserError: a file is not what it was.
        """
        for name, expected in self.manifest["files"].items():
            if sha256(self.folder / name) != expected["sha256"]:
                raise UserError(f"{self._name}: its {name} has changed since it was made; {_AGAIN}.")

    def check_tokenizer(self, fingerprint: str) -> None:
        """Compares the tokenizer that made these tokens with the one in use (`sinktrain.base.models.fingerprint`).

        Raises:
            UserError: they would spell text differently.
        """
        mine = self.manifest["tokenizer"]
        if mine["fingerprint"] != fingerprint:
            raise UserError(
                f"{self._name}: was made with the tokenizer {mine['name']}, which is not the model's; "
                "run `sinktrain prepare` with the model's tokenizer, or name this one with --model.tokenizer "
                f"{self.tokenizer}."
            )


def _check_entries(manifest: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError for a manifest without what training reads from it."""
    np.dtype(manifest["dtype"])
    for key in ("name", "fingerprint"):
        str(manifest["tokenizer"][key])
    for split in SPLITS:
        int(manifest["splits"][split]["tokens"])
        for name in files_of(split, manifest["schema"] == CHAT_SCHEMA):
            int(manifest["files"][name]["bytes"])


def trained_file(split: Split) -> str:
    """The name of the file that says which tokens are trained on, a byte a token."""
    return f"{split}.trained.bin"


def files_of(split: Split, is_chat: bool) -> list[str]:
    """The names of the files that decide what a split's samples are."""
    return [f"{split}.bin", f"{split}.documents.npy", *([trained_file(split)] if is_chat else [])]


def open_tokens(path: Path, dtype: np.dtype[_Kept]) -> NDArray[_Kept]:
    """A file of tokens as a read-only memory map: (tokens,). An empty file, which no system maps, is an empty array."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
