"""What a run was: its config, the code's git state, versions, machine; in every logger, and beside the logs."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback

import sinktrain
from sinktrain.base.secrets import command_line, option_secrets, redact, redact_command

_PACKAGES = ("sinktrain", "torch", "lightning", "transformers", "tokenizers", "datasets", "numpy")
FILE = "run.json"


def run_folder(trainer: L.Trainer) -> Path | None:
    """Where a run's own files lie, beside its logs; None where that would be the working directory itself.

    So it is without a logger (or with wandb, whose logs have a folder of their own), unless trainer.default_root_dir
    says otherwise. All ranks must ask.
    """
    folder = trainer.log_dir
    return None if folder is None or Path(folder).resolve() == Path.cwd() else Path(folder)


class RecordRun(SaveConfigCallback):
    """Gives the config and the state of the code and the machine to all loggers, and writes them into `run_folder`.

    There they are `config.yaml`, of the last start, and `run.json`, a list with an entry for each start: a run that is
    resumed into the same folder adds one. Secrets are left out of all of these.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves once."""
        self._folder = run_folder(trainer)
        _going_on_from(trainer)  # all ranks ask, and `save_config` is called on one
        self.save_to_log_dir = False  # Lightning's own file would have the secrets in it
        super().setup(trainer, pl_module, stage)

    def facts(self, trainer: L.Trainer) -> dict[str, Any]:
        """The config and the state of code and machine, as plain values, without secrets."""
        config = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
        facts = {"config": config, "run": run_entry(trainer)}
        redacted: dict[str, Any] = redact(facts, also=option_secrets(sys.argv[1:]))
        return redacted

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called by Lightning once, on rank 0."""
        written = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
        facts = self.facts(trainer)
        config, entry = facts["config"], facts["run"]
        if self._folder is not None:
            append_run(self._folder / FILE, entry)
            text = self.parser.dump(self.config, skip_none=False)
            if config != written:
                text = yaml.safe_dump(config, sort_keys=False)
            (self._folder / self.config_filename).write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams({**config, "run": entry})


def run_facts(trainer: L.Trainer) -> dict[str, Any]:
    """What a run is, for its checkpoints; without a config where no command line made the Trainer."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, RecordRun):
            return callback.facts(trainer)
    return {"config": None, "run": redact(run_entry(trainer), also=option_secrets(sys.argv[1:]))}


def _going_on_from(trainer: L.Trainer) -> str | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if hasattr(callback, "going_on_from"):
            found = callback.going_on_from(trainer)
            return None if found is None else str(found.path)
    return None


def clean_wandb(trainer: L.Trainer) -> None:
    """Keeps secrets out of what wandb itself notes of a run when it starts, which is before `RecordRun` is called."""
    for logger in trainer.loggers:
        if isinstance(noted := getattr(logger, "_wandb_init", None), dict):
            noted.update(redact(noted, also=option_secrets(sys.argv[1:])))
            logger.__class__ = _clean_kind(type(logger))


def _clean_kind(kind: Any) -> Any:
    """The class of a logger, whose experiment sees a `sys.argv` without secrets while it starts.

    Only then, since Lightning starts the processes of other ranks with it.
    """

    def experiment(self: Any) -> Any:
        arguments = sys.argv
        sys.argv = [arguments[0], *redact_command(arguments[1:])]
        try:
            return kind.experiment.fget(self)
        finally:
            sys.argv = arguments

    return type(kind.__name__, (kind,), {"experiment": property(experiment)})


def run_entry(trainer: L.Trainer) -> dict[str, Any]:
    """What is to be known of this start of a run, as plain values."""
    device = trainer.strategy.root_device
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": trainer.world_size,
        "nodes": trainer.num_nodes,
        "precision": trainer.precision,
        "checkpoint": _going_on_from(trainer),
        "git": {"sinktrain": git_state(Path(sinktrain.__file__).parent), "folder": git_state(Path.cwd())},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch (None on none) and whether tracked files differ from the commit; None outside a repository.

    A folder that its repository ignores, such as an installed package in a `.venv`, is outside.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "check-ignore", "-q", ".") is not None:
        return None
    return {
        "commit": commit,
        "branch": _git(folder, "symbolic-ref", "--short", "-q", "HEAD"),
        "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, stripped; None where it fails, or is not there."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def append_run(path: Path, entry: dict[str, Any]) -> None:
    """Adds an entry to a list in a JSON file, which is never seen half written; one that is damaged is put aside."""
    entries: list[Any] = []
    if path.exists():
        try:
            entries = list(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            path.replace(path.with_suffix(".damaged.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps([*entries, entry], indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
