"""The files that a page is made of, read and checked: what `evaluate`, `verify` and `fit` have written."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from sinktrain.base.errors import UserError
from sinktrain.base.secrets import redact
from sinktrain.reporting.records import (
    METHODS,
    STATEMENTS,
    Comparison,
    Floats,
    PositionRules,
    Results,
    Row,
    RulePair,
    Series,
    Verdict,
)

SCHEMA = 1


def load_results(folder: Path, option: str) -> Results:
    """Reads a folder that `sinktrain evaluate` wrote.

    Raises:
        UserError: a file or field is missing or of another schema, or `nll.npz` lacks the array of a row.
    """
    path = Path(folder) / "results.json"
    data = _read_json(path, option, "sinktrain evaluate")
    with _Fields(option, path, "sinktrain evaluate"):
        rows = tuple(_row(item) for item in data["rows"])
        attention = data["attention"]
        if attention is not None:
            share = np.asarray(attention["share"], dtype=np.float32)
            if share.ndim != 2 or not share.size:
                raise ValueError("attention.share is not a table of layers and heads")
            attention = attention | {"sink_metric": float(attention["sink_metric"])}
        results = Results(
            command=str(data["command"]),
            model={key: data["model"][key] for key in ("name", "architecture", "parameters", "dtype")}
            | {"trained_length": data["model"].get("trained_length"), "sink": data["model"].get("sink")},
            text={key: data["text"][key] for key in ("name", "tokens", "sha256")},
            cache_size=int(data["cache_size"]),
            rule=str(data["rule"]),
            rows=rows,
            attention=attention,
            environment={str(key): str(value) for key, value in data["environment"].items()},
            nll=_read_arrays(Path(folder) / "nll.npz", option, [row.name for row in rows]),
            position_rules=_position_rules(data.get("position_rules")),
        )
        if not rows:
            raise ValueError("it has no rows")
        _ = results.sinks  # a malformed sink is found here and not in the middle of the page
    return results


def load_verdict(path: Path) -> Verdict:
    """Reads the file that `sinktrain verify` wrote.

    Raises:
        UserError: the file or a field is missing or of another schema.
    """
    data = _read_json(path, "--verdict", "sinktrain verify")
    with _Fields("--verdict", path, "sinktrain verify"):
        if data["statement"] not in STATEMENTS:
            raise ValueError(f"the statement {data['statement']!r} is unknown")
        needed = data.get("needed")
        return Verdict(
            statement=data["statement"],
            sentences=tuple(str(sentence) for sentence in data["sentences"]),
            margin=_number(data["margin"]),
            cache_size=int(data["cache_size"]),
            model=str(data["model"]),
            comparisons=tuple(_comparison(item, "upper") for item in data["comparisons"]),
            needed=None if needed is None else _comparison(needed, "lower"),
            settings=dict(data["settings"]),
        )


def load_metrics(path: Path) -> dict[str, Series]:
    """Reads the CSV log of a training run: column name to the steps at which it has a value.

    Raises:
        UserError: the file is missing, or has no `step` or no loss.
    """
    lines = csv.DictReader(read_text(path, "--metrics").splitlines())
    if "step" not in (lines.fieldnames or ()):
        raise UserError(f"--metrics {path}: has no column `step`; name the metrics.csv of a training run.")
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        for line in lines:
            for column in ("train/loss", "val/loss"):
                if line.get(column):
                    points.setdefault(column, []).append((float(line["step"]), float(line[column])))
    except ValueError as error:
        raise UserError(f"--metrics {path}: line {lines.line_num} holds no number ({error}); mend it.") from error
    if not points:
        raise UserError(
            f"--metrics {path}: has neither train/loss nor val/loss; name the metrics.csv of a training run."
        )
    return {name: Series(*np.array(sorted(pairs)).T) for name, pairs in points.items()}


def read_text(path: Path, option: str) -> str:
    """The text of a file.

    Raises:
        UserError: it is missing, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{option} {path}: cannot be read ({reason}); check the path.") from error


class _Fields:
    """Turns whatever a malformed file makes Python raise into one sentence that says how to write it anew."""

    def __init__(self, option: str, path: Path, verb: str) -> None:
        self.place, self.verb = f"{option} {path}", verb

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise UserError(f"{self.place}: lacks `{error.args[0]}`; write it again with `{self.verb}`.") from error
        if isinstance(error, (TypeError, ValueError, AttributeError)):
            raise UserError(f"{self.place}: is malformed ({error}); write it again with `{self.verb}`.") from error


def _read_json(path: Path, option: str, verb: str) -> dict[str, Any]:
    text = read_text(path, option)
    with _Fields(option, path, verb):
        data = cast("dict[str, Any]", redact(json.loads(text)))
        schema = data.get("schema")
    if schema != SCHEMA:
        raise UserError(
            f"{option} {path}: has schema {schema}, and this version reads {SCHEMA}; write it again with `{verb}`."
        )
    return data


def _read_arrays(path: Path, option: str, names: list[str]) -> dict[str, Floats]:
    again = "write it again with `sinktrain evaluate`"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name].astype(np.float32) for name in names if name in arrays}
    except FileNotFoundError as error:
        raise UserError(f"{option} {path}: no such file; {again}.") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        raise UserError(f"{option} {path}: is damaged; {again}.") from error
    for name in names:
        if name not in found:
            raise UserError(f"{option} {path}: lacks the array `{name}`; {again}.")
        if found[name].ndim != 1:
            raise UserError(f"{option} {path}: the array `{name}` is not one number a token; {again}.")
    return found


def _row(item: dict[str, Any]) -> Row:
    if item["method"] not in METHODS:
        raise ValueError(f"the method {item['method']!r} is unknown")
    return Row(
        name=str(item["name"]),
        method=item["method"],
        tokens=int(item["tokens"]),
        tokens_full_cache=int(item["tokens_full_cache"]),
        ppl_all=_number(item["ppl_all"]),
        ppl_full_cache=_number(item["ppl_full_cache"]),
        nll_full_cache=_number(item["nll_full_cache"]),
        interval=_pair(item["interval"]),
        seconds=_number(item["seconds"]),
        tokens_per_second=_number(item["tokens_per_second"]),
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
        ppl_cache=_number(item["ppl_cache"]),
        ppl_original=_number(item["ppl_original"]),
        difference=_number(item["difference"]),
        interval=_pair(item["interval"]),
        enough=bool(item["enough"]),
    )


def _comparison(item: dict[str, Any], bound: str) -> Comparison:
    return Comparison(
        a=str(item["a"]),
        b=str(item["b"]),
        question=str(item["question"]),
        tokens=int(item["tokens"]),
        difference=_number(item["difference"]),
        interval=_pair(item["interval"]),
        bound=_number(item.get(bound)),
        block_length=item.get("block_length"),
        enough=bool(item.get("enough", True)),
        holds=bool(item["holds"]),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _pair(value: Any) -> tuple[float, float]:
    if value is None:
        return math.nan, math.nan
    low, high = value
    return _number(low), _number(high)
