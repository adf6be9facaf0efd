"""`sinktrain evaluate --tasks`: the tasks of EleutherAI's evaluation harness, the sinks in front of every window."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.secrets import command_line, redact
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import environment
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject

SCHEMA = 1
FILE = "tasks.json"


def evaluate_tasks(
    model: ModelOptions, tasks: str, folder: Path | None, limit: int | None, batch: int, out: Path, overwrite: bool
) -> Path:
    """Runs tasks and writes what the harness found into OUT/tasks.json.

    Args:
        model: see `evaluate`.
        tasks: names, separated by commas or spaces.
        folder: with the YAML files of tasks of one's own.
        limit: examples of each task; None for all.
        batch: windows at once.
        out: the result folder.
        overwrite: replace an existing one.

    Raises:
        UserError: the harness is not installed, or there is no such task, its data cannot be had, or it cannot be run
            on this model.
    """
    at_least("--limit", 1 if limit is None else limit, 1)
    at_least("--batch", batch, 1)
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise UserError("--tasks: needs the evaluation harness; run `pip install sinktrain[eval]`.") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if folder is None else str(folder))
    names = manager.match_tasks(tasks.replace(",", " ").split())
    known = set(names)
    for name in tasks.replace(",", " ").split():
        if not known & set(manager.match_tasks([name])):
            raise UserError(
                f"--tasks {name}: is no task of the harness; `lm-eval ls tasks` shows them, --task_folder adds."
            )
    with new_folder(out, "--out", overwrite=overwrite, reads=[model.name, folder]) as draft:
        subject = load_subject(model)
        try:
            found = lm_eval.simple_evaluate(
                model=harness_model(subject, batch), tasks=names, task_manager=manager, limit=limit, log_samples=False
            )
        except OSError as error:
            raise UserError(f"--tasks {tasks}: its data cannot be had ({_reason(error)}).") from error
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"--tasks {tasks}: the harness cannot run this on the model ({_reason(error)}); choose other tasks, or "
                "change their YAML files by --task_folder."
            ) from error
        record = {
            "schema": SCHEMA, "command": command_line(), "model": subject.description, "limit": limit,
            "harness": lm_eval.__version__, "results": found["results"], "samples": found.get("n-samples"),
            "environment": environment(),
        }  # fmt: skip
        (draft / FILE).write_text(json.dumps(redact(record), indent=1, default=str) + "\n")
    say(make_table(found))
    say(f"results: {out}")
    return out


def _reason(error: Exception) -> str:
    """The first line of an error, or its kind."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def harness_model(subject: Subject, batch: int, length: int | None = None) -> Any:
    """The harness's model; its own where there are no sinks."""
    if subject.sink_ids:
        from sinktrain.evaluation.harness import SinkLM

        return SinkLM(subject, batch, length)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch, max_length=length)
