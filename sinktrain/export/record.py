"""`sinktrain.json`: what the sink of an exported model is, for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sinktrain
from sinktrain.base.errors import UserError
from sinktrain.base.models import trained_length
from sinktrain.sinks.tokenizer import sink_ids_of, sink_tokens_of
from sinktrain.streaming.spec import CacheSpec
from sinktrain.training.checkpoints import Trained

RECORD = "sinktrain.json"
SCHEMA = 1


def sink_record(
    trained: Trained, verdict: dict[str, Any] | None, kept: bool = False, seed: int | None = None
) -> dict[str, Any]:
    """Plain values.

    Args:
        trained: the model as it is exported; its weights are not looked at.
        verdict: the record of `sinktrain verify`, if there is one.
        kept: its adapters are beside the weights, not in them.
        seed: of the run, if it is known; models that differ in it alone are compared as a group.
    """
    ids = sink_ids_of(trained.tokenizer)
    length = trained_length(trained.model.config)
    return {
        "schema": SCHEMA,
        "sinktrain": sinktrain.__version__,
        "sink": {
            "kind": trained.sink.kind,
            "count": len(ids),
            "tokens": sink_tokens_of(trained.tokenizer),
            "ids": ids,
        },
        "trained_length": length,
        "cache": str(CacheSpec.default(len(ids), length)),
        "step": trained.step,
        "seed": seed,
        "tuning": trained.tuning.mode,
        "adapters": "kept" if kept else "merged" if trained.tuning.mode == "lora" else None,
        "verdict": verdict,
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an exported folder.

    Raises:
        UserError: it has none.
    """
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        if record["schema"] == SCHEMA and isinstance(record["sink"]["ids"], list):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"--folder {folder}: holds no {RECORD} that can be read; name what `sinktrain export` wrote.")
