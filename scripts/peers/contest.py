"""The runs of the contestants: each in a process of its own, all on the same material and with the same settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from peers.figures import difference
from sinktrain.base.errors import UserError
from sinktrain.streaming.spec import CacheSpec

HERE = Path(__file__).parent
WARMUP = 8  # tokens decoded with a full cache before the clock starts
PEER = "attention_sinks"

# malloc keeps freed memory, as the command line of sinktrain has it (sinktrain.base.allocator): the same for all, so
# that nobody gains by it.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


class Contest:
    """The runs of all contestants on one material.

    Args:
        folder: holds the material; takes jobs, results and NLLs.
        peers_python: the Python that has attention_sinks.
        settings: what is the same in every job.
    """

    def __init__(self, folder: Path, peers_python: Path, settings: dict[str, Any]) -> None:
        self.folder, self.peers_python, self.settings = folder, peers_python, settings
        self.versions: dict[str, dict[str, str]] = {}

    def run(self, contestant: str, dtype: str, label: str = "", **changes: Any) -> dict[str, Any]:
        """Runs a contestant in a process of its own, and keeps its NLLs under `label`.

        Raises:
            UserError: it failed.
        """
        job = {**self.settings, "contestant": contestant, "dtype": dtype, **changes}
        job["nll"] = str(self.path(label or contestant, dtype))
        mine, answer = self.folder / "job.json", self.folder / "result.json"
        mine.write_text(json.dumps(job))
        answer.unlink(missing_ok=True)
        python, script = (sys.executable, "run_ours.py")
        if contestant == PEER:
            python, script = str(self.peers_python), "run_attention_sinks.py"
        variables = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [python, str(HERE / script), str(mine), str(answer)], env=variables, capture_output=True, text=True
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError(f"--contestants {contestant}: failed ({last}); mend that, or leave it out.")
        result: dict[str, Any] = json.loads(answer.read_text())
        self.versions["peer" if contestant == PEER else "ours"] = result.pop("versions")
        return result

    def path(self, label: str, dtype: str) -> Path:
        """Where the NLLs of a run are kept."""
        return self.folder / f"{label} {dtype}.npy".replace("/", "_")

    def nll(self, label: str, dtype: str) -> Any:
        """(T-1,) the NLLs of a run."""
        return np.load(self.path(label, dtype))


def differences(contest: Contest, cache: CacheSpec, dtypes: list[str], contestants: list[str]) -> dict[str, Any]:
    """How far ours are from attention_sinks over the tokens predicted with a full cache, by dtype and comparison.

    Runs `stream_nll` also as it must not be, which shows how small a mistake the comparison would find.
    """
    assert cache.recent is not None and cache.size is not None
    sinks, recent, size = cache.sinks, cache.recent, cache.size
    length = size + WARMUP + contest.settings["steps"] + 1
    wrong: dict[str, dict[str, Any]] = {
        f"wrong: a band of one token less ({sinks}+{recent - 1})": {"recent": recent - 1},
        f"wrong: a band of one token more ({sinks}+{recent + 1})": {"recent": recent + 1},
        "wrong: the `original` rule": {"rule": "original"},
    }
    found: dict[str, Any] = {}
    for dtype in dtypes:
        peer = contest.nll(PEER, dtype)
        rows = {}
        for name in contestants:
            if name in ("stream_nll", "SinkCache"):
                rows[f"{name}, from attention_sinks"] = difference(contest.nll(name, dtype), peer, size)
        for label, changes in wrong.items():
            contest.run("stream_nll", dtype, label, timed=False, length=length, **changes)
            rows[label] = difference(contest.nll(label, dtype), peer, size)
        if dtype != "float32" and "float32" in dtypes:
            for name in (PEER, "stream_nll"):
                exact = contest.nll(name, "float32")[: length - 1]
                rows[f"{name}, from its own float32"] = difference(contest.nll(name, dtype), exact, size)
        found[dtype] = rows
    return found
