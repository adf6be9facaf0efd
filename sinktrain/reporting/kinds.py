"""Kinds of models: those of a grid that differ in their seed only are shown as one."""

from __future__ import annotations

import numpy as np

from sinktrain.reporting.compare import Panel, over_seeds
from sinktrain.reporting.pictures.forest import Line
from sinktrain.reporting.records import Results


def lines(panel: Panel) -> list[Line]:
    """The rows of the paper's Table 3: the models of a grid that differ in their seed only are one kind."""
    groups: dict[tuple[str, str], list[Results]] = {}
    for results in panel.columns:
        groups.setdefault((results.grid, str(results.model["group"])), []).append(results)
    labels = {results.label for results in panel.columns}
    kinds: list[tuple[str, list[Results]]] = []
    for (_, group), models in groups.items():
        if _differ_in_seed(models):
            alone = [name for _, name in groups].count(group) == 1 and group not in labels
            kinds.append((group if alone else models[0].label, models))
        else:
            kinds += [(results.label, [results]) for results in models]
    return [
        _line(name, row, models)
        for name, models in kinds
        for row in dict.fromkeys(row.name for results in models for row in results.rows)
    ]


def _differ_in_seed(models: list[Results]) -> bool:
    """Whether these models of one group are of one grid, and each has a seed of its own."""
    seeds = {results.model["seed"] for results in models}
    return len(models) > 1 and models[0].grid != "" and None not in seeds and len(seeds) == len(models)


def _line(group: str, row: str, models: list[Results]) -> Line:
    found = [each for results in models if (each := results.row(row)) is not None]
    seeds = tuple(each.nll_full_cache for each in found)
    interval = found[0].interval if len(found) == 1 else over_seeds(models, row)
    return Line(group, row, float(np.mean(seeds)), interval, seeds)
