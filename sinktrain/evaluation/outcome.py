"""What came of a grid: result folders, and tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sinktrain.base.records import as_json
from sinktrain.base.secrets import command_line
from sinktrain.base.terminal import say
from sinktrain.evaluation.contestants import distinct
from sinktrain.evaluation.grid import full_cache
from sinktrain.evaluation.results import GRID, SCHEMA, environment, write_results
from sinktrain.evaluation.rules import in_words, rules_record
from sinktrain.evaluation.work import Workshop
from sinktrain.streaming import CacheSpec


def write_cells(workshop: Workshop, folder: Path, second: CacheSpec | None) -> list[dict[str, Any]]:
    """Writes the results of every cell and, of several, `grid.json`; gives their records."""
    settings, records, cells = workshop.settings, [], []
    names = distinct([Path(name).stem for name in settings.texts])
    several = len(list(settings.cells)) > 1
    for m, t in settings.cells:
        model = settings.models[m]
        place = f"{model.label}/{names[t]}" if len(names) > 1 else model.label
        records.append(_write_cell(workshop, m, t, folder / place if several else folder, second))
        cells.append(
            {"model": model.label, "group": model.group, "seed": model.seed, "text": settings.texts[t], "folder": place}
        )
    if several:
        record = {"schema": SCHEMA, "kind": "grid", "command": command_line(), "cells": cells}
        (folder / GRID).write_text(as_json(record))
    return records


def _write_cell(workshop: Workshop, model: int, text: int, folder: Path, second: CacheSpec | None) -> dict[str, Any]:
    settings, contestant, found = workshop.settings, workshop.settings.models[model], workshop.model(model)
    description, arrays = workshop.text(model, text)
    size, rows = settings.size, workshop.rows(model, text)
    full = full_cache(description["tokens"], found["sinks"], size)
    density = description["bytes"] / description["tokens"] if description["bytes"] else None
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "evaluation",
        "command": command_line(),
        "model": {
            **found["description"], "label": contestant.label, "group": contestant.group, "seed": contestant.seed,
        },
        "text": description,
        "cache_size": size,
        "rule": settings.rows[0].rule,
        "rows": [row.summary(full, arrays["documents"], density) for row in rows],
        "attention": workshop.attention(model, text),
        "environment": environment(),
    }  # fmt: skip
    if second is not None:
        length = found["description"]["trained_length"]
        record["position_rules"] = rules_record(
            rows, second, record["rule"], size, found["sinks"], length, arrays["documents"].astype(np.int64)
        )
    write_results(folder, record, rows, arrays)
    return record


def show(records: list[dict[str, Any]]) -> None:
    """The tables on the terminal, one for each text: caches down, models across."""
    for text in dict.fromkeys(record["text"]["name"] for record in records):
        shown = [record for record in records if record["text"]["name"] == text]
        if len(records) > 1:
            bits = len({record["text"]["sha256"] for record in shown}) > 1
            unit = "bits per byte (its tokens differ)" if bits else "PPL"
            say(f"{text}: {unit} of tokens with a full cache, and its 95% interval")
            say(f"{'cache':>16} " + " ".join(f"{record['model']['label']:>26}" for record in shown))
            for rows in zip(*(record["rows"] for record in shown), strict=True):
                cells = [_bits(row) if bits else f"{row['ppl_full_cache']:.3f} ({_interval(row)})" for row in rows]
                say(f"{rows[0]['name']:>16} " + " ".join(f"{cell:>26}" for cell in cells))
            continue
        say(f"{'cache':>16} {'tokens':>8} {'PPL all':>10} {'PPL full cache':>15}   95% interval")
        for row in shown[0]["rows"]:
            figures = f"{row['tokens']:>8} {row['ppl_all']:>10.3f} {row['ppl_full_cache']:>15.3f}"
            say(f"{row['name']:>16} {figures}   {_interval(row)}")
    for record in records:
        if "position_rules" in record:
            say(in_words(record["position_rules"]))


def _interval(row: dict[str, Any]) -> str:
    with np.errstate(over="ignore"):  # a model that is that bad has a PPL of inf
        low, high = np.exp(row["interval"])
    return f"{low:.3f} to {high:.3f}"


def _bits(row: dict[str, Any]) -> str:
    """Bits per byte, which those models have in common that cut a text into other tokens."""
    scale = row["bits_per_byte"] / row["nll_full_cache"]
    low, high = (scale * value for value in row["interval"])
    return f"{row['bits_per_byte']:.4f} ({low:.4f} to {high:.4f})"
