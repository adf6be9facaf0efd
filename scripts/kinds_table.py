"""The table of `compare_kinds.py`: losses and streaming perplexities of kinds of sinks, and their spread over seeds."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

FEWEST_SEEDS = 3
"""One model of 4 million parameters once ended 12 perplexity points above another kind with one seed and level with it
with the next; fewer seeds than these are no comparison."""

STUDENT_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95% quantiles of Student's t by degrees of freedom; for more of them see `student_95`."""

NOTE = """Means over seeds, with the lowest and highest seed; perplexities of the tokens with a full cache; the
difference of losses is taken seed by seed, with its 95% interval (Student)."""


@dataclass(frozen=True)
class Run:
    """One kind with one seed: the last validation loss, and by cache the mean NLL over tokens with a full cache."""

    kind: str
    seed: int
    loss: float
    nll: dict[str, float]


def student_95(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t; beyond the table to 0.003 by its expansion around the normal one.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = 1.959964
    more = (z**3 + z) / 4 / freedom + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    return STUDENT_95.get(freedom, z + more)


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of `values` and half of its two-sided 95% interval (Student); infinite for a single value."""
    if len(values) < 2:
        return mean(values), math.inf
    return mean(values), student_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def read_runs(out: Path, kinds: Iterable[str], seeds: Iterable[int]) -> list[Run]:
    """The runs under `out` that have been trained and evaluated."""
    runs = []
    for kind in kinds:
        for seed in seeds:
            folder = out / f"{kind}-{seed}"
            if not (folder / "evaluate.done").exists():
                continue
            record = json.loads((folder / "evaluation" / "results.json").read_text())
            nll = {row["name"]: row["nll_full_cache"] for row in record["rows"]}
            runs.append(Run(kind, seed, last_loss(folder / "logs" / "metrics.csv"), nll))
    return runs


def last_loss(metrics: Path) -> float:
    """The last `val/loss` of a CSV log."""
    with metrics.open(newline="") as file:
        found = [row["val/loss"] for row in csv.DictReader(file) if row.get("val/loss")]
    return float(found[-1])


def table(runs: list[Run], reference: str = "none") -> list[list[str]]:
    """Rows of cells, the header first.

    A cell is the mean perplexity over seeds, with the lowest and highest seed. The column of differences is the
    validation loss less that of `reference` with the same seed: its mean and 95% interval over the seeds.
    """
    caches = list(dict.fromkeys(name for run in runs for name in run.nll))
    rows = [["kind", "seeds", "val loss", f"less {reference}", *caches]]
    base = {run.seed: run.loss for run in runs if run.kind == reference}
    for kind in dict.fromkeys(run.kind for run in runs):
        mine = [run for run in runs if run.kind == kind]
        cells = [kind, str(len(mine)), _spread([run.loss for run in mine])]
        differences = [run.loss - base[run.seed] for run in mine if run.seed in base]
        cells.append(_difference(differences) if kind != reference and differences else "")
        perplexities = ([math.exp(run.nll[cache]) for run in mine if cache in run.nll] for cache in caches)
        rows.append([*cells, *map(_spread, perplexities)])
    return rows


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.4g} ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else f"{values[0]:.4g}"


def _difference(values: list[float]) -> str:
    middle, half = interval(values)
    return f"{middle:+.4f} ± {half:.4f}" if math.isfinite(half) else f"{middle:+.4f}"


def print_table(runs: list[Run], out: Path) -> None:
    """Prints the table as Markdown and keeps it in `out`/table.md."""
    if not runs:
        raise SystemExit(f"{out}: holds no run that is trained and evaluated.")
    header, *rows = table(runs)
    lines = [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    lines += ["", *NOTE.splitlines()]
    if min(sum(run.kind == kind for run in runs) for kind in {run.kind for run in runs}) < FEWEST_SEEDS:
        lines += ["", f"Fewer than {FEWEST_SEEDS} seeds: no comparison of kinds follows from this table."]
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text)
    print("\n" + text)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
