"""The verb `report`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sinktrain.base.errors import UserError
from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.reporting.load import load_metrics, load_results, load_verdict, read_text
from sinktrain.reporting.page import Material, render
from sinktrain.reporting.records import Results


def report(
    results: Path,
    out: Path,
    base: Path | None = None,
    verdict: Path | None = None,
    metrics: Path | None = None,
    settings: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes one HTML file that shows what was measured and everything needed to repeat it.

    The page needs no network and no scripts. It follows the reader's light or dark mode.

    Args:
        results: The folder that `sinktrain evaluate` wrote about the fine-tuned model.
        out: The HTML file to write.
        base: The same for the base model, on the same text with the same cache size; its figures stand beside.
        verdict: The JSON file that `sinktrain verify` wrote; without it the page says "not judged".
        metrics: The metrics.csv of the training run, for the loss curve.
        settings: The YAML file of the training run, shown as it is.
        overwrite: Replace `out` if it exists.

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
    material = Material(
        results=load_results(results, "--results"),
        base=None if base is None else load_results(base, "--base"),
        verdict=None if verdict is None else load_verdict(verdict),
        metrics=None if metrics is None else load_metrics(metrics),
        settings=None if settings is None else redact(read_text(settings, "--settings")),
    )
    if material.base is not None:
        _check_same(material.results, material.base, str(base))
    if material.verdict is not None and material.verdict.cache_size != material.results.cache_size:
        raise UserError(
            f"--verdict {verdict}: judges a cache of {material.verdict.cache_size} and --results has one of "
            f"{material.results.cache_size}; run `sinktrain verify` on these results."
        )
    _write(out, render(material))
    say(f"page: {out.resolve()}")
    return out


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
