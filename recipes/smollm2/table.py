#!/usr/bin/env python3
"""Prints the tables of this recipe: python recipes/smollm2/table.py [--runs runs/smollm2]

Reads the result folders MODE-TEXT-C of `sinktrain evaluate` (base-stdlib-256, sink_only-austen-1024 ...), with the
verdicts in them, and times/*.json of timed.py. What is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from paired import Row, check_same_text, difference, figure, markdown, percent, ppl, read, row, run, same_tokens

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import Results

MODES = ("base", "sink_only", "embed", "lora", "full")
NAMES = {"0": "0+C", "1": "1+(C-1)", "2": "2+(C-2)", "4": "4+(C-4)"}
CACHES = (*NAMES.values(), "recompute")
PAIRS = (("1+(C-1)", "4+(C-4)"), ("1+(C-1)", "recompute"), ("0+C", "1+(C-1)"))


@dataclass(frozen=True)
class Setting:
    """A column: a text, and C."""

    text: str
    size: int

    def __str__(self) -> str:
        return f"{self.text}, C = {self.size:,}"

    def cache(self, name: str) -> str:
        """The cache that `name` means at this C."""
        sinks = next((sinks for sinks, known in NAMES.items() if known == name), None)
        return name if sinks is None else f"{sinks}+{self.size - int(sinks)}"


Runs = dict[tuple[str, Setting], Results]


def main(arguments: list[str] | None = None) -> int:
    """Prints every table that the folders are enough for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"))
    options = parser.parse_args(arguments)
    runs = read_runs(options.runs)
    tables = {
        "PPL of tokens with a full cache, with 95% intervals": perplexities(runs),
        "The same tokens under two caches of one model: change of PPL, with 95% intervals": within(runs),
        "Against the base model, token by token: change of PPL, with 95% intervals": against_base(runs),
        "Dense: the whole history, all tokens": dense(runs),
        "Attention on the first position, verdict, time of the evaluation": attention(runs, options.runs),
        "Wall time and memory": times(options.runs / "times"),
    }
    for title, rows in tables.items():
        if len(rows) > 1:
            say(f"**{title}**\n\n{markdown(rows)}")
    return 0


def read_runs(folder: Path) -> Runs:
    """The result folders, by mode and setting, in the order of the tables.

    Raises:
        UserError: there is none.
    """
    runs: Runs = {}
    for path in sorted(folder.glob("*")):
        match = re.fullmatch(r"(\w+)-(\w+)-(\d+)", path.name)
        if match and match[1] in MODES and (path / "results.json").exists():
            runs[match[1], Setting(match[2], int(match[3]))] = read(path)
    if not runs:
        raise UserError(f"--runs {folder}: holds no result folder such as base-stdlib-256; run `sinktrain evaluate`.")
    return runs


def perplexities(runs: Runs) -> list[list[str]]:
    """Rows model x cache."""

    def cell(mode: str, name: str, setting: Setting) -> str:
        found = runs.get((mode, setting))
        each = None if found is None else row(found, setting.cache(name))
        return "" if each is None else ppl(figure(each, same_tokens(each)))

    return _grid(runs, "cache", CACHES, cell)


def within(runs: Runs) -> list[list[str]]:
    """Rows model x pair of caches."""

    def cell(mode: str, pair: str, setting: Setting) -> str:
        found = runs.get((mode, setting))
        a, b = (None if found is None else row(found, setting.cache(name)) for name in pair.split(" against "))
        return "" if a is None or b is None else percent(difference(a, b))

    return _grid(runs, "difference", [" against ".join(pair) for pair in PAIRS], cell)


def against_base(runs: Runs) -> list[list[str]]:
    """Rows model x cache: the change that training made."""

    def cell(mode: str, name: str, setting: Setting) -> str:
        a, b = (_row(runs, each, name, setting) for each in (mode, "base"))
        return "" if a is None or b is None or mode == "base" else percent(difference(a, b))

    return _grid(runs, "cache", CACHES, cell)


def dense(runs: Runs) -> list[list[str]]:
    """Rows model: PPL over all tokens, and its change from the base model's."""

    def cell(mode: str, name: str, setting: Setting) -> str:
        a, b = (_row(runs, each, "dense", setting) for each in (mode, "base"))
        if a is None:
            return ""
        a = replace(a, full=np.isfinite(a.nll))
        if name == "PPL":
            return ppl(figure(a, a.full))
        return "" if b is None or mode == "base" else percent(difference(a, replace(b, full=np.isfinite(b.nll))))

    return _grid(runs, "figure", ["PPL", "change from base"], cell)


def attention(runs: Runs, folder: Path) -> list[list[str]]:
    """Rows model x setting: figures that are no perplexities."""
    rows = [["model", "text", "Sink_0", "mean share on position 0", "verdict", "seconds"]]
    for mode in modes(runs):
        for setting in settings(runs):
            if (mode, setting) not in runs:
                continue
            record = runs[mode, setting].record
            seen, verdict = record["attention"], folder / f"{mode}-{setting.text}-{setting.size}" / "verdict.json"
            cells = ["", ""] if seen is None else [f"{seen['sink_metric']:.1%}", f"{np.mean(seen['share']):.3f}"]
            cells.append(json.loads(verdict.read_text())["statement"] if verdict.exists() else "")
            rows.append([mode, str(setting), *cells, f"{sum(each['seconds'] for each in record['rows']):.0f}"])
    return rows


def times(folder: Path) -> list[list[str]]:
    """Rows command: what timed.py wrote."""
    rows = [["what", "seconds", "peak memory, GiB"]]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        rows.append([path.stem, f"{record['seconds']:.0f}", f"{record['peak_bytes'] / 2**30:.2f}"])
    return rows


def modes(runs: Runs) -> list[str]:
    """Those there are, in the order of the tables."""
    return [mode for mode in MODES if any(mode == each for each, _ in runs)]


def settings(runs: Runs) -> list[Setting]:
    """Those there are."""
    return sorted({setting for _, setting in runs}, key=lambda setting: (setting.text, setting.size))


def _row(runs: Runs, mode: str, name: str, setting: Setting) -> Row | None:
    """One model's row, of the base model's tokens where there are any."""
    found, base = runs.get((mode, setting)), runs.get(("base", setting))
    if found is None:
        return None
    if base is not None:
        check_same_text(found, base, f"{mode} and base, {setting}")
    return row(found, setting.cache(name))


def _grid(runs: Runs, what: str, names: Sequence[str], cell: Callable[[str, str, Setting], str]) -> list[list[str]]:
    """Rows model x name, columns settings; rows without any figure are left out."""
    rows = [["model", what, *map(str, settings(runs))]]
    for mode in modes(runs):
        for name in names:
            cells = [cell(mode, name, setting) for setting in settings(runs)]
            rows += [[mode, name, *cells]] if any(cells) else []
    return rows


if __name__ == "__main__":
    run(main)
