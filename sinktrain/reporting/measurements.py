"""What else is measured, read and checked: recall, StreamEval, questions, the price of a token, a very long stream."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError
from sinktrain.evaluation.contestants import short_name
from sinktrain.reporting.reading import Fields, number, pair, read_json
from sinktrain.reporting.records import Answer, Answers, Flat, Speed
from sinktrain.reporting.sources import Sources

MIB = 2**20
CHOICES = "choices"
VERBS = {
    "recall": "sinktrain recall",
    "streameval": "sinktrain stream-eval",
    "questions": "sinktrain stream-questions",
}
BENCH, FOUR_MILLION = "sinktrain bench stream", "scripts/stream_4m.sh"


def label_of(model: dict[str, Any]) -> str:
    """What a model goes by: the label that it was measured under, or else the short form of its name."""
    return str(model.get("label") or short_name(str(model["name"])))


def load_answers(path: Path, option: str, sources: Sources) -> Answers:
    """Reads recall.json, streameval.json or questions.json.

    Raises:
        UserError: a field is missing or of another schema.
    """
    kind = path.stem
    data = read_json(path, option, VERBS[kind])
    with Fields(option, path, VERBS[kind]):
        rows = tuple(_answer(item) for item in data["rows"])
        if not rows:
            raise ValueError("it has no rows")
        command = str(data.get("command") or VERBS[kind])
        method = data.get("interval_method")
        method = method.get("accuracy") if isinstance(method, dict) else method
        return Answers(
            kind=kind,
            label=label_of(data["model"]),
            rows=rows,
            method=str(method) if isinstance(method, str) else "",
            sources=(sources.add(path, command),),
            chance=number(data.get("chance")) if any(CHOICES in row.kinds for row in rows) else math.nan,
        )


def _answer(item: dict[str, Any]) -> Answer:
    return Answer(
        cache=str(item["cache"]),
        distance=number(item.get("token_distance", item.get("distance"))),
        lines=number(item.get("line_distance")),
        asked=int(item["asked"]),
        right=int(item["right"]),
        accuracy=number(item["accuracy"]),
        interval=pair(item["interval"]),
        gain=number(item.get("gain")),
        gain_interval=pair(item.get("gain_interval")),
        kinds=_kinds(item),
    )


def _kinds(item: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """How many were right, and asked, of those answered by a letter and in words; and in whose words the answer is."""
    fields = ((CHOICES, "choices", "right"), ("in words", "words", "right"), ("answer in it", "words", "holds_answer"))
    asked = [(name, item.get(kind) or {}, right) for name, kind, right in fields]
    return {name: (int(of[right]), int(of["asked"])) for name, of, right in asked if of.get("asked")}


def load_stream(path: Path, option: str, sources: Sources) -> Speed | Flat:
    """Reads a stream.json: of `sinktrain bench stream`, or of scripts/stream_4m.sh.

    Raises:
        UserError: it is neither, or a field is missing.
    """
    data = read_json(path, option, f"{BENCH}` or `{FOUR_MILLION}", [1, None], clean=False)  # drift has `token`
    if "nll_by_hundredth" in data:
        with Fields(option, path, FOUR_MILLION):
            return _flat(data, sources.add(path, str(data["command"])))
    if "decoding" not in data:
        raise UserError(f"{option} {path}: is of neither `{BENCH}` nor `{FOUR_MILLION}`; leave it out.")
    with Fields(option, path, BENCH):
        return _speed(data, sources.add(path, str(data["command"])))


def _speed(data: dict[str, Any], source: int) -> Speed:
    methods: dict[str, list[tuple[float, float, float, float, float]]] = {}
    for row in data["decoding"]:
        for name, found in row["methods"].items():
            low, high = found["quartiles_ms"]
            memory = (found["cache_bytes"] + found["working_bytes"]) / MIB
            methods.setdefault(name, []).append((row["size"], found["median_ms"], low, high, memory))
    if not methods:
        raise ValueError("it has no rows")
    ratios = [
        (int(row["size"]), number(row["ratios"].get("recompute/streaming")), number(row["paper_recompute/streaming"]))
        for row in data["decoding"]
    ]
    machine, model = data["machine"], data["model"]
    where = machine["name"] if machine["device"] != "cpu" else f"CPU, {machine['threads']} threads"
    return Speed(
        label=label_of(model),
        title=f"{label_of(model)}, {model['dtype']}, {where}",
        methods={name: tuple(rows) for name, rows in methods.items()},
        ratios=tuple(ratio for ratio in ratios if ratio[1] == ratio[1]),
        sources=(source,),
    )


def _flat(data: dict[str, Any], source: int) -> Flat:
    nll = tuple(number(value) for value in data["nll_by_hundredth"])
    if not nll:
        raise ValueError("it has no NLLs")
    return Flat(
        label=f"{int(data['parameters']):,} parameters",
        cache=str(data["cache"]),
        tokens=int(data["tokens"]),
        nll=nll,
        memory=tuple(number(value) for value in data["memory_mb"]),
        growth=number(data["memory_growth"]),
        drift=tuple(
            (number(row["token"]), number(row["mean_nll"]), number(row["mean_nll_fresh"]),
             number(row["largest_difference"]))
            for row in data["drift"]
        ),
        sources=(source,),
    )  # fmt: skip
