"""What `evaluate` and `fit` have written, read and checked."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sinktrain.base.errors import UserError
from sinktrain.reporting.reading import Fields, number, pair, read_columns, read_json, read_text
from sinktrain.reporting.records import METHODS, PositionRules, Results, Row, RulePair, Series
from sinktrain.reporting.sources import Sources

EVALUATE = "sinktrain evaluate"
RESULTS_SCHEMA = 2
SINK_COLUMNS = "sinks/"


def load_results(folder: Path, option: str, sources: Sources | None = None) -> Results:
    """Reads a folder that `sinktrain evaluate` wrote.

    Raises:
        UserError: a file or field is missing or of another schema, or `nll.parquet` lacks the column of a row.
    """
    folder = Path(folder)
    path, nll = folder / "results.json", folder / "nll.parquet"
    data = read_json(path, option, EVALUATE, [RESULTS_SCHEMA])
    with Fields(option, path, EVALUATE):
        rows = tuple(_row(item, str(data["rule"])) for item in data["rows"])
        if not rows:
            raise ValueError("it has no rows")
        results = Results(
            command=str(data["command"]),
            model={key: data["model"][key] for key in ("name", "architecture", "parameters", "dtype")}
            | {key: data["model"].get(key) for key in ("trained_length", "sink", "label", "group", "seed")},
            text={key: data["text"][key] for key in ("name", "tokens", "sha256")}
            | {key: data["text"].get(key) for key in ("bytes", "documents", "spelling")},
            cache_size=int(data["cache_size"]),
            rule=str(data["rule"]),
            rows=rows,
            attention=_attention(data.get("attention")),
            environment={str(key): str(value) for key, value in data["environment"].items()},
            nll=_arrays(nll, option, [row.name for row in rows]),
            position_rules=_position_rules(data.get("position_rules")),
        )
        _ = results.sinks  # a malformed sink is found here and not in the middle of the page
    if sources is None:
        return results
    return replace(results, sources=tuple(sources.add(file, results.command) for file in (path, nll)))


def load_metrics(path: Path, option: str = "--metrics") -> dict[str, Series]:
    """Reads the CSV log of a training run: column name to the steps at which it has a value.

    The columns are the losses, and those of `SinkMonitor` where it watched the run.

    Raises:
        UserError: the file is missing, or has no `step` or no loss.
    """
    lines = csv.DictReader(read_text(path, option).splitlines())
    names = lines.fieldnames or ()
    if "step" not in names:
        raise UserError(f"{option} {path}: has no column `step`; name the metrics.csv of a training run.")
    columns = [name for name in names if name in ("train/loss", "val/loss") or name.startswith(SINK_COLUMNS)]
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        for line in lines:
            for column in columns:
                if line.get(column):
                    points.setdefault(column, []).append((float(line["step"]), float(line[column])))
    except ValueError as error:
        raise UserError(f"{option} {path}: line {lines.line_num} holds no number ({error}); mend it.") from error
    if not {"train/loss", "val/loss"} & set(points):
        raise UserError(
            f"{option} {path}: has neither train/loss nor val/loss; name the metrics.csv of a training run."
        )
    return {name: Series(*np.array(sorted(pairs)).T) for name, pairs in points.items()}


def _arrays(path: Path, option: str, names: list[str]) -> dict[str, Any]:
    found = read_columns(path, option, [*names, "document"])
    for name in names:
        if name not in found:
            raise UserError(f"{option} {path}: lacks the column `{name}`; write it again with `{EVALUATE}`.")
        found[name] = found[name].astype(np.float32)
    return found


def _attention(item: dict[str, Any] | None) -> dict[str, Any] | None:
    if item is None:
        return None
    share = np.asarray(item["share"], dtype=np.float32)
    if share.ndim != 2 or not share.size:
        raise ValueError("attention.share is not a table of layers and heads")
    return item | {"sink_metric": float(item["sink_metric"])}


def _row(item: dict[str, Any], rule: str) -> Row:
    if item["method"] not in METHODS:
        raise ValueError(f"the method {item['method']!r} is unknown")
    return Row(
        name=str(item["name"]),
        method=item["method"],
        tokens=int(item["tokens"]),
        tokens_full_cache=int(item["tokens_full_cache"]),
        ppl_all=number(item["ppl_all"]),
        ppl_full_cache=number(item["ppl_full_cache"]),
        nll_full_cache=number(item["nll_full_cache"]),
        interval=pair(item["interval"]),
        seconds=number(item["seconds"]),
        rule=str(item.get("rule") or ("original" if str(item["name"]).endswith(" original") else rule)),
    )


def _position_rules(item: dict[str, Any] | None) -> PositionRules | None:
    """None for results of an `evaluate` without --both_rules."""
    if item is None:
        return None
    length, past = item["trained_length"], item["past_trained_length"]
    return PositionRules(
        cache=str(item["cache"]),
        trained_length=None if length is None else int(length),
        full_cache=_rule_pair(item["full_cache"]),
        past_trained_length=None if past is None else _rule_pair(past),
    )


def _rule_pair(item: dict[str, Any]) -> RulePair:
    return RulePair(
        tokens=int(item["tokens"]),
        ppl_cache=number(item["ppl_cache"]),
        ppl_original=number(item["ppl_original"]),
        difference=number(item["difference"]),
        interval=pair(item["interval"]),
        enough=bool(item["enough"]),
    )
