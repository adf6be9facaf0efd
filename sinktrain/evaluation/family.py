"""Several verdicts at once: every group of models, text and cache of a grid, with Holm's correction over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.evaluation.results import GRID, Cell, Results, read_cells, read_results
from sinktrain.evaluation.statistics import holm
from sinktrain.evaluation.statistics.interval import ALPHA
from sinktrain.evaluation.verdict import SCHEMA, Statement, judge_models
from sinktrain.evaluation.wording import percent, unsigned
from sinktrain.streaming import CacheSpec

OVER = (
    "Over the verdicts, p-values are adjusted by Holm (1979): the chance that any verdict that says proven is false is "
    "at most 5%. Whether a sink is needed is asked of each by itself."
)
Key = tuple[str | None, str]


def read_grid(path: Path, groups: str | None) -> dict[Key, list[Results]]:
    """The results of a folder, by group of models and text; those of a single result folder have no group.

    Args:
        path: a result folder, or a folder with grid.json.
        groups: the groups to read, separated by commas; all when None.

    Raises:
        UserError: it is neither, or of another version, or has no such group.
    """
    if not (path / GRID).is_file():
        if groups is not None:
            raise UserError(f"--groups {groups}: --results {path} is no grid of models; leave --groups out.")
        results = read_results(path)
        return {(None, results.record["text"]["name"]): [results]}
    cells = read_cells(path)
    there = list(dict.fromkeys(cell.group for cell in cells))
    wanted = there if groups is None else groups.replace(",", " ").split()
    if not wanted or not set(wanted) <= set(there):
        raise UserError(
            f"--groups {groups}: the grid {path} holds {', '.join(there) or 'no model'}; name some of these."
        )
    found: dict[Key, list[Cell]] = {}
    for cell in cells:
        if cell.group in wanted:
            found.setdefault((cell.group, cell.text), []).append(cell)
    for (group, _), alike in found.items():
        models = [cell.model for cell in alike]
        if len(set(models)) < len(models):
            raise UserError(f"--results {path}: holds {models[0]} twice on one text; run `sinktrain evaluate` again.")
        seeds = [cell.seed for cell in alike if cell.seed is not None]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"--results {path}: two models of the group {group} have the same seed of {seeds}; what was trained "
                "alike says nothing of the spread between seeds, so evaluate only one."
            )
    return {key: [cell.results for cell in alike] for key, alike in found.items()}


def judge_family(
    grid: Mapping[Key, Sequence[Results]],
    caches: Sequence[CacheSpec],
    against: Sequence[CacheSpec],
    *,
    margin: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """A verdict for each (group, text, cache), and over all of them; for a single one, that verdict.

    Args:
        grid: results by group and text.
        caches: in question.
        against: caches with more sinks; each of `caches` is compared with those of its size that keep more than it.
        margin: in nats a token.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: the results do not hold the caches, or are not alike, or `resamples` can prove nothing.
    """
    _enough_resamples(resamples, len(caches) * sum(len(models) == 1 for models in grid.values()))
    verdicts = []
    for (group, _), models in grid.items():
        for cache in caches:
            alike = [spec for spec in against if spec.size == cache.size] or against
            more = [spec for spec in alike if spec.sinks > cache.sinks] or alike
            verdicts.append(
                judge_models(models, cache, more, margin=margin, resamples=resamples, seed=seed, name=group)
            )
    judged = [verdict for verdict in verdicts if verdict["p_value"] is not None]
    for verdict, p in zip(judged, holm([verdict["p_value"] for verdict in judged]), strict=True):
        _correct(verdict, p, len(judged))
    for verdict in verdicts:
        verdict.setdefault("p_holm", None)
        verdict["verdicts"] = []
    if len(verdicts) == 1:
        return verdicts[0]
    return _overall(verdicts, margin)


def _enough_resamples(resamples: int, count: int) -> None:
    """Refuses so few that `count` verdicts by bootstrap could not be proven, whatever the results.

    The bootstrap's p-values are 1 / (1 + resamples) at least. Verdicts over several seeds use none, and their p-values
    may come first in Holm's order.
    """
    if count and holm([1 / (1 + resamples)] * count)[0] > ALPHA:
        raise UserError(
            f"--resamples {resamples}: too few for {count} verdicts, none of which could be proven after Holm's "
            f"correction; give {math.ceil(count / ALPHA)} or more."
        )


def _correct(verdict: dict[str, Any], p: float, count: int) -> None:
    """Takes back a "proven" that does not outlast the correction for all the verdicts."""
    verdict["p_holm"] = p
    if verdict["statement"] == "proven" and p > ALPHA:
        verdict["statement"] = "not proven"
        verdict["sentences"][0] = (
            f"Not proven: {verdict['sentences'][0].removeprefix('Proven: ')[:-1]} if asked alone "
            f"(p = {verdict['p_value']:.2g}), but not as one of {count} verdicts (p = {p:.2g} after Holm's correction)."
        )


def _overall(verdicts: list[dict[str, Any]], margin: float) -> dict[str, Any]:
    """All verdicts in one record; proven where all are."""
    statements = [verdict["statement"] for verdict in verdicts]
    statement: Statement = "proven" if set(statements) == {"proven"} else "could not be judged"
    if "not proven" in statements:
        statement = "not proven"
    names = {key: ", ".join(dict.fromkeys(verdict[key] for verdict in verdicts)) for key in ("model", "text")}
    labelled = [
        {**pair, "model": verdict["model"], "text": verdict["text"]}
        for verdict in verdicts
        for pair in verdict["comparisons"]
    ]
    adjusted = [verdict["p_holm"] for verdict in verdicts]
    return {
        "schema": SCHEMA,
        "kind": "verdict",
        "statement": statement,
        "sentences": _sentences(verdicts, statement, labelled, margin),
        "margin": margin,
        "cache_size": max(verdict["cache_size"] for verdict in verdicts),
        **names,
        "models": list(dict.fromkeys(name for verdict in verdicts for name in verdict["models"])),
        "comparisons": labelled,
        "needed": None,
        "p_value": None if None in adjusted else max(adjusted),
        "p_holm": None if None in adjusted else max(adjusted),
        "multiplicity": {**verdicts[0]["multiplicity"], "over": OVER, "verdicts": len(verdicts)},
        "settings": {
            **verdicts[0]["settings"],
            **{
                key: " ".join(dict.fromkeys(" ".join(verdict["settings"][key] for verdict in verdicts).split()))
                for key in ("cache", "against")
            },
        },
        "verdicts": verdicts,
    }


def _sentences(verdicts: list[dict[str, Any]], statement: str, pairs: list[dict[str, Any]], margin: float) -> list[str]:
    """Three plain sentences about all of them."""
    count, share = len(verdicts), f"{100 * math.expm1(margin):.2g}%"
    by_statement: dict[str, list[str]] = {}
    for verdict in verdicts:
        by_statement.setdefault(verdict["statement"], []).append(_label(verdict, verdicts))
    parts = [f"{said} for {'; '.join(names)}" for said, names in sorted(by_statement.items(), reverse=True)]
    holm_said = f"a cost of less than {share} of perplexity, at 5% for all {count} verdicts together (Holm)"
    first = f"{statement[0].upper()}{statement[1:]}: {holm_said}: {', '.join(parts)}."
    second = "No difference could be measured."
    if pairs:
        worst = max(pairs, key=lambda pair: pair["upper"])
        seen = sorted(pair["smallest_difference"] for pair in pairs)
        second = (
            f"The largest bound is that of {worst['model']} on {worst['text']}, {worst['a']} against {worst['b']}: "
            f"{percent(worst['difference'])} (at most {percent(worst['upper'])} with 95% confidence); the smallest "
            f"difference that could have been seen is between {unsigned(seen[0])} and {unsigned(seen[-1])}."
        )
    asked = [verdict for verdict in verdicts if verdict["needed"] is not None]
    need = [_label(verdict, verdicts) for verdict in asked if verdict["needed"]["holds"]]
    third = f"The sink is needed in {len(need)} of {len(asked)}" + (f": {'; '.join(need)}." if need else ".")
    return [first, second, third if asked else "Whether the sink is needed was not measured."]


def _label(verdict: dict[str, Any], verdicts: list[dict[str, Any]]) -> str:
    """A verdict among the others: the model on the text, and the cache where there are several."""
    caches = {each["settings"]["cache"] for each in verdicts}
    return f"{verdict['model']} on {verdict['text']}" + (
        f" with {verdict['settings']['cache']}" if len(caches) > 1 else ""
    )
