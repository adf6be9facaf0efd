"""What lies in the folders of runs: the files that a page can be made of, by kind."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.base.paths import inside
from sinktrain.base.secrets import redact
from sinktrain.reporting.diagnosis import Diagnosis, load_diagnosis
from sinktrain.reporting.load import EVALUATE, load_metrics, load_results
from sinktrain.reporting.measurements import label_of, load_answers, load_stream
from sinktrain.reporting.reading import Fields, read_json, read_text
from sinktrain.reporting.records import Answers, Flat, Results, Speed, Training
from sinktrain.reporting.sources import Sources
from sinktrain.reporting.verdict import Verdict, load_verdict

OPTION = "RUN"
FILES = (
    "results.json", "grid.json", "verdict.json", "diagnosis.json", "recall.json", "streameval.json", "questions.json",
    "stream.json", "metrics.csv", "config.yaml",
)  # fmt: skip
PASSED_OVER = {"wandb", "checkpoints", "__pycache__"}
"""Folders that hold files of these names, or many files, and none of ours."""

LOGS = re.compile(r"logs|lightning_logs|version_\d+")
"""Folders of loggers, whose names do not tell a training run from others."""


@dataclass
class Found:
    """Everything in the runs, each list in the order of the runs and of the paths in them."""

    results: list[Results] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    flats: list[Flat] = field(default_factory=list)


def find(runs: list[Path], sources: Sources) -> Found:
    """Reads all that the runs hold.

    Args:
        runs: folders, searched to their depths, or single files of the names in `FILES`.
        sources: gets every file.

    Raises:
        UserError: a run is not there, or holds nothing to show, or a file in it is malformed.
    """
    found = Found()
    seen: set[Path] = set()
    for run in runs:
        paths = list(_files(Path(run)))
        for path in paths:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                _read(path, found, sources)
        if not paths:
            raise UserError(f"{OPTION} {run}: holds nothing to show, such as a results.json of `sinktrain evaluate`.")
        name = Path(run).resolve().name
        found.results = [each if each.run else replace(each, run=name) for each in found.results]
    found.results = _labelled(found.results)
    return found


def _files(run: Path) -> Iterator[Path]:
    if run.is_file() and run.name in FILES:
        yield run
    elif run.is_dir():
        for folder, below, names in os.walk(run):
            below[:] = sorted(name for name in below if not name.startswith(".") and name not in PASSED_OVER)
            # the settings follow the log of the same run, whose part they become
            yield from (Path(folder, name) for name in FILES if name in names)
    else:
        raise UserError(f"{OPTION} {run}: is neither a folder nor a file of results; check the path.")


def _read(path: Path, found: Found, sources: Sources) -> None:
    name = path.name
    if name == "results.json":
        if _at(path.parent, found) is None:
            found.results.append(_load(path.parent, sources))
    elif name == "grid.json":
        _read_grid(path, found, sources)
    elif name == "verdict.json":
        found.verdicts.append(load_verdict(path, OPTION, sources))
    elif name == "diagnosis.json":
        found.diagnoses.append(load_diagnosis(path, OPTION, sources))
    elif name == "stream.json":
        stream = load_stream(path, OPTION, sources)
        if isinstance(stream, Speed):
            found.speeds.append(stream)
        else:
            found.flats.append(stream)
    elif name == "metrics.csv" or (name == "config.yaml" and not (path.parent / "metrics.csv").exists()):
        found.trainings.append(load_training(path.parent, sources))
    elif name != "config.yaml":
        found.answers.append(load_answers(path, OPTION, sources))


def load_training(folder: Path, sources: Sources) -> Training:
    """The log and the settings of the training run that logged into `folder`, as far as they are there."""
    metrics, settings, command = folder / "metrics.csv", folder / "config.yaml", fit_command(folder)
    log = load_metrics(metrics, OPTION) if metrics.is_file() else None
    return Training(
        label=next((part for part in reversed(folder.resolve().parts) if not LOGS.fullmatch(part)), ""),
        metrics=log,
        settings=redact(read_text(settings, OPTION)) if settings.is_file() else None,
        sources=(sources.add(metrics, command),) if log is not None else (),
        settings_sources=(sources.add(settings, command),) if settings.is_file() else (),
    )


def fit_command(folder: Path) -> str:
    """The command of the training run that logged into `folder`, from its run.json."""
    try:
        entries = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return str(redact(entries[-1]["command"]))
    except (OSError, ValueError, LookupError, TypeError):
        return "sinktrain fit"


def _load(folder: Path, sources: Sources) -> Results:
    return replace(load_results(folder, OPTION, sources), place=str(folder))


def _at(folder: Path, found: Found) -> Results | None:
    """The results of a folder, if they were read already, by whatever path."""
    return next((each for each in found.results if Path(each.place).resolve() == folder.resolve()), None)


def _read_grid(path: Path, found: Found, sources: Sources) -> None:
    """The results of a grid in its order, which need not be that of its folders' names."""
    data = read_json(path, OPTION, EVALUATE, [2])
    with Fields(OPTION, path, EVALUATE):
        number = sources.add(path, str(data.get("command") or EVALUATE))
        cells = [(inside(path.parent, cell["folder"], f"{OPTION} {path}"), cell) for cell in data["cells"]]
        models = [{"label": cell["model"], "group": cell["group"], "seed": cell["seed"]} for _, cell in cells]
    for (folder, _), model in zip(cells, models, strict=True):
        if not (folder / "results.json").is_file():
            raise UserError(f"{OPTION} {folder}: is named by its grid.json and is not there; evaluate it again.")
        known = _at(folder, found)
        results = known or _load(folder, sources)
        found.results = [each for each in found.results if each is not known]
        found.results.append(
            replace(results, model=results.model | model, grid=str(path), sources=(*results.sources, number))
        )


def _labelled(results: list[Results]) -> list[Results]:
    """Short names that tell the results of one text apart: the model's, or its folder where two are the same."""
    names = [label_of(each.model) for each in results]
    many = _twice(results, names)
    names = [f"{each.run}: {name}" if name in many else name for each, name in zip(results, names, strict=True)]
    many = _twice(results, names)
    names = [each.place if name in many else name for each, name in zip(results, names, strict=True)]
    return [replace(each, label=name) for each, name in zip(results, names, strict=True)]


def _twice(results: list[Results], names: list[str]) -> set[str]:
    pairs = Counter((name, each.text["sha256"]) for each, name in zip(results, names, strict=True))
    return {name for (name, _), number in pairs.items() if number > 1}
