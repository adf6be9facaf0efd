"""The models that are measured side by side: what they are called, and which differ in their seed alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import ModelOptions

EXPORT_RECORD = "sinktrain.json"


@dataclass(frozen=True)
class Contestant:
    """A model of a grid.

    Attributes:
        options: how to load it.
        label: its name in the table, and that of its folder.
        group: what it shares with models that differ in the seed alone, such as `token` of `token-0` and `token-1`.
        seed: that it was trained with, where its record says so.
    """

    options: ModelOptions
    label: str
    group: str
    seed: int | None

    @property
    def identity(self) -> list[Any]:
        """What tells whether it is still the same: names, sizes and times of its files, or its name and revision."""
        options = self.options
        return [options.name, options.revision, options.dtype, options.device, files_of(options.name)]


def contestants(first: ModelOptions, beside: list[str]) -> list[Contestant]:
    """The models that `--model.name` and `--beside` name, folders of several opened.

    Raises:
        UserError: one of them is named twice.
    """
    names = [name for each in (first.name, *beside) for name in _opened(each)]
    once("--beside", names, "model")
    called = _told_apart(names)
    found = []
    for name, own, label in zip(names, called, distinct(called), strict=True):
        seed = _seed(name)
        # A number that was only added to tell two models apart is no seed.
        group = label
        if seed is not None and label == own:
            group = re.sub(rf"(^|[-_.])(seed)?[-_]?{seed}(?=$|-)", "", label).strip("-_.") or label
        found.append(Contestant(replace(first, name=name), label, group, seed))
    return found


def once(option: str, names: list[str], what: str) -> None:
    """Refuses what is named twice, though it may be by another path.

    Raises:
        UserError: one of them is.
    """
    places = [Path(name).resolve() if Path(name).exists() else name for name in names]
    twice = next((name for name, place in zip(names, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"{option} {twice}: is named twice; name each {what} once.")


def files_of(name: str) -> list[list[Any]]:
    """Names, sizes and times of the files that a name stands for; empty for a name of a hub or a package.

    Hidden ones are left out: the draft of these very results may lie among them.
    """
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in shown if file.is_file()]


def _opened(name: str) -> list[str]:
    """The models in a folder of models; the name itself where it is a model."""
    from sinktrain.training.checkpoints import is_checkpoint

    path = Path(name)
    if not path.is_dir() or (path / "config.json").is_file() or is_checkpoint(name):
        return [name]
    inside = [each for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    models = [each for each in inside if (each / "config.json").is_file() or is_checkpoint(str(each))]
    models += [each / "checkpoints" for each in inside if each not in models and is_checkpoint(f"{each}/checkpoints")]
    if not models and not (path / "adapter_config.json").is_file():
        raise UserError(
            f"model.name {name}: holds no model; name an export, a run's checkpoints, or a folder of these."
        )
    return [str(each) for each in sorted(models)] or [name]


def _told_apart(names: list[str]) -> list[str]:
    """A short name for each, with the folders above it where two are alike: `a-export` and `b-export`."""
    found = [short_name(name) for name in names]
    for parts in range(2, 5):
        alike = [found.count(each) > 1 for each in found]
        found = [
            short_name(name, parts) if twin else each for name, each, twin in zip(names, found, alike, strict=True)
        ]
    return [_clean(each) for each in found]


def short_name(name: str, parts: int = 1) -> str:
    """The last part of a model's name or path that tells it apart: `sink_only` of `runs/sink_only/checkpoints`."""
    found = [part for part in re.split(r"[/:]", name) if part not in ("", ".", "..", "checkpoints")]
    return "-".join(found[-parts:]) or "model"


def distinct(labels: list[str]) -> list[str]:
    """The same names, fit for folders, a number behind those that come again."""
    clean = [_clean(label) for label in labels]
    return [each if clean.count(each) == 1 else f"{each}-{clean[:n].count(each) + 1}" for n, each in enumerate(clean)]


def _clean(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip(".-") or "text"


def _seed(name: str) -> int | None:
    """The seed of the run that a checkpoint or an export is of."""
    from sinktrain.training.checkpoints import is_checkpoint, run_record

    try:
        if is_checkpoint(name):
            record = run_record(Path(name), "model.name")
            seed = None if record is None else record["config"].get("seed_everything")
        else:
            seed = json.loads((Path(name) / EXPORT_RECORD).read_text()).get("seed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
