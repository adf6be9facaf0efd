"""The verb `report`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.base.folders import new_folder
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.reporting.compare import by_name
from sinktrain.reporting.found import Found, find, fit_command
from sinktrain.reporting.gallery import gallery
from sinktrain.reporting.load import load_metrics, load_results
from sinktrain.reporting.material import Material, made_of
from sinktrain.reporting.page import render
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.reading import read_text
from sinktrain.reporting.records import Results, Training
from sinktrain.reporting.sources import Sources
from sinktrain.reporting.verdict import load_verdict
from sinktrain.reporting.wandb_log import WandbOptions, log

NO_WANDB = WandbOptions()


def report(
    runs: list[Path] | None = None,
    *,
    out: Path,
    compare: bool = False,
    pictures: Path | None = None,
    results: Path | None = None,
    base: Path | None = None,
    verdict: Path | None = None,
    metrics: Path | None = None,
    settings: Path | None = None,
    wandb: WandbOptions = NO_WANDB,
    overwrite: bool = False,
) -> Path:
    """Writes one HTML file that shows what was measured and everything needed to repeat it.

    `report RUN... --out page.html` shows all that lies in the folders RUN. The page needs no network and no scripts. It
    follows the reader's light or dark mode.

    Args:
        runs: Folders, searched to their depths, with what `evaluate`, `verify`, `diagnose`, `recall`, `stream-eval`,
            `stream-questions`, `bench stream`, `scripts/stream_4m.sh` and `fit` have written. What is missing is left
            out.
        out: The HTML file to write.
        compare: Put all evaluations in the runs side by side, a table for each stretch of a text, with the paired
            differences of those on the same tokens; where tokenizers cut the same bytes differently, in bits per byte.
        pictures: A folder to write every picture into as well, as SVG and PNG, light and dark, and as data.
        results: The folder that `sinktrain evaluate` wrote about the fine-tuned model, instead of runs.
        base: The same for the base model, on the same text with the same cache size; its figures stand beside.
        verdict: The JSON file that `sinktrain verify` wrote; without it the page says "not judged".
        metrics: The metrics.csv of the training run, for the loss curve.
        settings: The YAML file of the training run, shown without secrets.
        wandb: Where Weights & Biases gets the page, its pictures, its table and the verdict as well; off by default.
        overwrite: Replace `out`, and `pictures`, if they exist.

    Returns:
        The path of the page.

    Raises:
        UserError: An input is missing or malformed or does not belong to the others, or `out` exists already.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file, such as {out / 'report.html'}.")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists already; choose another file, or pass --overwrite true.")
    wandb.check()
    sources = Sources()
    if runs and any(option is not None for option in (results, base, verdict, metrics, settings)):
        raise UserError("--results: and its companions stand for a run; give them, or RUNs, and not both.")
    if runs:
        found = find(runs, sources)
        material = made_of(found, sources, by_name(found.results) if compare else ())
    elif results is None:
        raise UserError("RUN: is missing; name folders of results, or one with --results.")
    elif compare:
        raise UserError("--compare: needs two runs; name them as RUNs, without --results.")
    else:
        material = _of_options(sources, results, base, verdict, metrics, settings)
    gallery_of = gallery(material)
    page = render(material, gallery_of)
    if pictures is not None:
        read = [Path(source.path) for source in sources.found]
        _write_pictures(pictures, gallery_of, overwrite, read)
    _write(out, page)
    say(f"page: {out.resolve()}")
    if wandb.project is not None:
        log(wandb, material, gallery_of, out)
    return out


def _of_options(
    sources: Sources, results: Path, base: Path | None, verdict: Path | None, metrics: Path | None,
    settings: Path | None,
) -> Material:  # fmt: skip
    """The material from files that are named one by one."""
    tuned = load_results(results, "--results", sources)
    beside = None if base is None else load_results(base, "--base", sources)
    judged = None if verdict is None else load_verdict(verdict, "--verdict", sources)
    if beside is not None:
        _check_same(tuned, beside, str(base))
    if judged is not None and judged.cache_size != tuned.cache_size:
        raise UserError(
            f"--verdict {verdict}: judges a cache of {judged.cache_size} and --results has one of "
            f"{tuned.cache_size}; run `sinktrain verify` on these results."
        )
    trained: tuple[Training, ...] = ()
    if metrics is not None or settings is not None:
        trained = (_training(sources, metrics, settings),)
    every = (tuned,) if beside is None else (tuned, beside)
    material = made_of(Found(results=list(every)), sources)
    return replace(
        material, results=tuned, base=beside, verdict=judged, verdicts=() if judged is None else (judged,),
        trainings=trained,
    )  # fmt: skip


def _training(sources: Sources, metrics: Path | None, settings: Path | None) -> Training:
    log_of = None if metrics is None else load_metrics(metrics)
    text = None if settings is None else redact(read_text(settings, "--settings"))
    of = [() if path is None else (sources.add(path, fit_command(path.parent)),) for path in (metrics, settings)]
    return Training("", log_of, text, *of)


def _check_same(results: Results, base: Results, name: str) -> None:
    """Figures stand side by side only where they answer the same question."""
    for what, mine, other in (
        ("cache size", results.cache_size, base.cache_size),
        ("position rule", results.rule, base.rule),
        ("text (by its hash)", results.text["sha256"], base.text["sha256"]),
    ):
        if mine != other:
            raise UserError(
                f"--base {name}: has {what} {other} and --results has {mine}; "
                "evaluate both models on the same text with the same cache."
            )


def _write_pictures(folder: Path, pictures: dict[str, Picture], overwrite: bool, read: list[Path]) -> None:
    with new_folder(folder, "--pictures", overwrite=overwrite, reads=read) as draft:
        for picture in pictures.values():
            picture.write(draft)
    say(f"pictures: {folder}")


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            Path(draft).chmod(0o666 & ~umask)  # mkstemp makes it private; a page is to be read by others
            Path(draft).replace(path)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); choose another file.") from error
