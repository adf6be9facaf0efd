"""The page, its pictures, its table and the verdict in Weights & Biases, whose package is imported only then."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sinktrain.base.errors import UserError
from sinktrain.base.secrets import redact_command
from sinktrain.base.terminal import say
from sinktrain.reporting.material import Material
from sinktrain.reporting.numbers import exponential
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.records import Row


@dataclass(frozen=True)
class WandbOptions:
    """Where Weights & Biases gets the page too; off without a project. Names are those of Lightning's WandbLogger.

    Args:
        project: of the run; nothing is logged without one.
        mode: `offline` writes into a folder beside the page, for `wandb sync`; by default what WANDB_MODE says, or
            online.
        name: of the run.
        entity: the user or team.
        group: of runs.
        tags: separated by commas.
    """

    project: str | None = None
    mode: Literal["online", "offline"] | None = None
    name: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: str | None = None

    def check(self) -> None:
        """Refuses what cannot be, before anything is written.

        Raises:
            UserError: an option is given without a project, or the package is missing.
        """
        given = [name for name in ("mode", "name", "entity", "group", "tags") if getattr(self, name) is not None]
        if self.project is None and given:
            raise UserError(f"--wandb.{given[0]}: has no effect without --wandb.project; give one.")
        if self.project is not None and importlib.util.find_spec("wandb") is None:
            raise UserError("--wandb.project: the package wandb is not installed; run: pip install 'sinktrain[wandb]'")


def log(options: WandbOptions, material: Material, pictures: dict[str, Picture], page: Path) -> None:
    """Logs a run: the table of caches, every picture, the page, the verdict as summary, and an artifact of all.

    Args:
        options: with a project.
        material: of the page.
        pictures: of the page.
        page: as it was written.

    Raises:
        UserError: wandb does not take it, for want of a login or a network.
    """
    import wandb

    try:
        with _clean_arguments():
            run = wandb.init(
                project=options.project, mode=options.mode, name=options.name, entity=options.entity,
                group=options.group, tags=options.tags.split(",") if options.tags else None, job_type="report",
                dir=os.environ.get("WANDB_DIR") or str(page.parent), reinit="finish_previous",
                settings=wandb.Settings(console="off"),
            )  # fmt: skip
        _log(wandb, run, material, pictures, page)
        place = run.dir if run.settings.mode == "offline" or run.offline else run.url
        run.finish()
    except wandb.Error as error:
        raise UserError(
            f"--wandb.project {options.project}: was refused ({error}); the page is written; run `wandb login`, or "
            "pass --wandb.mode offline."
        ) from error
    say(f"wandb: {place}")


def _log(wandb: Any, run: Any, material: Material, pictures: dict[str, Picture], page: Path) -> None:
    columns, rows = table(material)
    run.config.update({"sources": [vars(source) for source in material.sources.found]})
    run.summary.update(summary(material))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for picture in pictures.values():
            picture.write(folder)
        run.log(
            {"caches": wandb.Table(columns=columns, data=rows), "page": wandb.Html(page.read_text(), inject=False)}
            | {
                f"pictures/{name}": wandb.Image(str(folder / f"{name}-light.png"), caption=picture.title)
                for name, picture in pictures.items()
            }
        )
        artifact = wandb.Artifact(f"report-{run.id}", type="report", metadata=summary(material))
        artifact.add_file(str(page), name="page.html")
        artifact.add_dir(str(folder), name="pictures")
        artifact.add(wandb.Table(columns=columns, data=rows), "caches")
        run.log_artifact(artifact)


def table(material: Material) -> tuple[list[str], list[list[Any]]]:
    """The table of every model and cache: its columns, and its rows."""
    columns = ["model", "text", "cache", "method", "rule", "tokens", "tokens_full_cache", "ppl_all", "ppl_full_cache",
               "low", "high", "seconds", "predicted_tokens_per_second"]  # fmt: skip
    rows = [
        [results.label or results.model["name"], results.text["name"], *_cells(row)]
        for results in material.every
        for row in results.rows
    ]
    return columns, rows


def _cells(row: Row) -> list[Any]:
    numbers = (row.ppl_all, row.ppl_full_cache, *map(exponential, row.interval), row.seconds, row.predicted_per_second)
    return [row.name, row.method, row.rule, row.tokens, row.tokens_full_cache, *map(_known, numbers)]


def summary(material: Material) -> dict[str, Any]:
    """The verdict, flat."""
    verdict = material.verdict
    if verdict is None:
        return {"verdict/statement": "not judged"}
    found: dict[str, Any] = {
        "verdict/statement": verdict.statement,
        "verdict/sentences": " ".join(verdict.sentences),
        "verdict/margin": verdict.margin,
        "verdict/model": verdict.model,
    }
    for pair in verdict.pairs:
        place = f"verdict/{pair.words}"
        found |= {f"{place}/difference": _known(pair.difference), f"{place}/low": _known(pair.interval[0])}
        found |= {f"{place}/high": _known(pair.interval[1]), f"{place}/holds": pair.holds}
    return found


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


@contextmanager
def _clean_arguments() -> Iterator[None]:
    """wandb notes the command line when it starts: without secrets."""
    arguments = sys.argv
    sys.argv = [arguments[0], *redact_command(arguments[1:])]
    try:
        yield
    finally:
        sys.argv = arguments
