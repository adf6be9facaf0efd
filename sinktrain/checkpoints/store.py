"""The folder that a run keeps its checkpoints in: drafts, names, which are whole, and which may go."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.checkpoints import disk
from sinktrain.checkpoints.pieces import Piece, encode, index

MANIFEST, OWNER = "manifest.json", "owner.txt"
SCHEMA = 1
_NAME = re.compile(r"step-(\d+)")


class Draft:
    """A checkpoint in the making, in a sibling of its place. Ranks need not talk: they see each other's files.

    Args:
        store: the folder of the run.
        step: of the optimizer.
        attempt: the same on all ranks, and another for every start of the run.
    """

    def __init__(self, store: Path, step: int, attempt: str) -> None:
        self.step, self.final = step, store / f"step-{step:09d}"
        self.path = store / f".step-{step:09d}.{attempt}"

    def write_rank(self, rank: int, pieces: list[Piece], state: dict[str, Any]) -> None:
        """Writes what a rank holds, and last the file that says it has.

        Raises:
            OSError: it cannot be written.
        """
        disk.make_folder(self.path)
        name = f"rank-{rank:05d}"
        written = disk.write_file(self.path / f"{name}.safetensors", encode(pieces))
        entry = {"file": {"name": f"{name}.safetensors", **written._asdict()}, "pieces": index(pieces), "state": state}
        # Renamed when it is whole: rank 0 reads it as soon as it is there.
        disk.write_file(self.path / f".{name}.json", [json.dumps(entry).encode()])
        disk.rename(self.path / f".{name}.json", self.path / f"{name}.json")

    def publish(
        self, ranks: int, documents: dict[str, Any], facts: dict[str, Any], wait: float, alive: Callable[[], None]
    ) -> Path:
        """Rank 0: once all ranks have written, writes the rest, the manifest last, and names the folder.

        Args:
            ranks: how many there are.
            documents: JSON files to add, by name.
            facts: for the manifest.
            wait: seconds to wait for the slowest rank.
            alive: called while waiting; raises to end that.

        Raises:
            UserError: a rank wrote nothing in that time.
            OSError: something cannot be written.
        """
        files: dict[str, Any] = {}
        for rank in range(ranks):
            path = self.path / f"rank-{rank:05d}.json"
            _wait_for(path, wait, alive)
            written = dict(json.loads(path.read_text())["file"])
            files[written.pop("name")] = written
            files[path.name] = {"bytes": path.stat().st_size, "sha256": disk.checksum(path)}
        for name, content in documents.items():
            files[name] = disk.write_file(self.path / name, [json.dumps(content, indent=1).encode()])._asdict()
        manifest = {"schema": SCHEMA, "step": self.step, "ranks": ranks, **facts, "files": files}
        disk.write_file(self.path / MANIFEST, [json.dumps(manifest, indent=1).encode()])
        disk.sync_folder(self.path)
        if self.final.exists():
            pass_over(Found(self.final, self.step))
        disk.rename(self.path, self.final)
        return self.final


def _wait_for(path: Path, seconds: float, alive: Callable[[], None]) -> None:
    begun, pause = time.monotonic(), 0.005
    while not path.exists():
        alive()
        if time.monotonic() - begun > seconds:
            raise UserError(
                f"checkpoints.folder {path.parent.parent}: {path.name} was not written in {seconds:.0f} s; is the "
                "folder on a disk that all machines share?"
            )
        time.sleep(pause)
        pause = min(1.0, pause * 1.5)


@dataclass(frozen=True)
class Found:
    """A checkpoint that lies in a folder, looked at from outside.

    Attributes:
        path: its folder.
        step: of the optimizer, by its name.
    """

    path: Path
    step: int

    def manifest(self) -> dict[str, Any]:
        """What it says of itself.

        Raises:
            ValueError: a sentence on what is wrong.
        """
        try:
            manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
            schema, _ = manifest["schema"], {name: entry["bytes"] for name, entry in manifest["files"].items()}
        except OSError:
            raise ValueError(f"has no readable {MANIFEST}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"its {MANIFEST} is damaged") from None
        if schema != SCHEMA:
            raise ValueError(f"has version {schema}, and this sinktrain reads version {SCHEMA}")
        return manifest

    def check(self, share: int = 0, shares: int = 1) -> None:
        """Compares sizes of all files, and checksums of a share of them, so that ranks can do it together.

        Raises:
            ValueError: a sentence on what is wrong.
        """
        for number, (name, expected) in enumerate(sorted(self.manifest()["files"].items())):
            path = self.path / name
            if path.name != name or not path.is_file():
                raise ValueError(f"its {name} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise ValueError(f"its {name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}")
            if number % shares == share and disk.checksum(path) != expected["sha256"]:
                raise ValueError(f"its {name} is not what was written (another checksum)")

    def document(self, name: str) -> Any:
        """A JSON file of it.

        Raises:
            UserError: it is none.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: its {name} is damaged; use another checkpoint.") from error

    def rank_state(self, rank: int) -> Any:
        """What `Draft.write_rank` was given."""
        return self.document(f"rank-{rank:05d}.json")["state"]


def found(store: Path) -> list[Found]:
    """The checkpoints in a folder, the newest first, damaged ones among them."""
    names = [(path, _NAME.fullmatch(path.name)) for path in store.iterdir()] if store.is_dir() else []
    return sorted((Found(path, int(name[1])) for path, name in names if name), key=lambda each: -each.step)


def claim(store: Path, attempt: str, first: bool) -> None:
    """Notes which start of a run writes into a folder. The last to come has it; one that still runs stops.

    Args:
        store: the folder.
        attempt: what this start is called.
        first: whether it has not written anything yet.

    Raises:
        UserError: another one has come since.
    """
    disk.make_folder(store)
    owner = store / OWNER
    if not first and (not owner.exists() or owner.read_text() != attempt):
        raise UserError("another run has begun to write there; give each run a folder of its own")
    if first:
        disk.write_file(owner, [attempt.encode()])


def pass_over(each: Found) -> None:
    """Puts a checkpoint out of the way, under a name by which no run goes on from it; nothing of it is thrown away."""
    disk.rename(each.path, each.path.with_name(f"passed-over-{each.path.name}-{time.time_ns()}"))


def clean(store: Path) -> None:
    """Removes what earlier starts of the run left half made or half removed."""
    for path in list(store.iterdir()) if store.is_dir() else []:
        if path.is_dir() and path.name.startswith((".step-", ".gone-")):
            disk.remove(path)


def prune(store: Path, keep: int) -> None:
    """Removes temporary checkpoints but the newest `keep`, and never one of the two newest of all."""
    whole = 0
    temporary = []
    for each in found(store):
        try:
            manifest = each.manifest()
        except ValueError:
            continue
        whole += 1
        if not manifest.get("permanent", True):
            temporary.append((whole, each))
    for number, each in temporary[keep:]:
        if number > 2:
            disk.remove(each.path)
