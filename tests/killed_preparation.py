"""A preparation that kills itself, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from sinktrain.data import journal, shards
from sinktrain.data.prepare import prepare

given = json.loads(sys.argv[1])
shards._SHARD = given["shard"]
owner, name = {"line": (journal.Journal, "add"), "write": (shards.Shards, "write")}[given["where"]]
real, calls = getattr(owner, name), []

def counted(self, *arguments):
    real(self, *arguments)
    calls.append(1)
    if len(calls) == given["times"]:
        if given["where"] == "write":
            for file in (*self._files, *self._trained, self._records):
                file.flush()  # the half shard is on disk too
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, counted)
prepare(given["source"], Path(given["out"]), **given["options"])
"""


def killed_preparation(source: Path, out: Path, where: str, times: int, shard: int, **options: Any) -> dict[str, Any]:
    """Prepares `source` with shards of so many tokens, and is killed after the journal's `times`-th `line`, or `write`.

    Returns:
        The last line of the journal that it left; empty where there is none but the settings.
    """
    given = {"source": str(source), "out": str(out), "where": where, "times": times, "shard": shard, "options": options}
    command = [sys.executable, "-c", PROGRAM, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    lines = (out.with_name(f".{out.name}.draft") / "notes" / "journal.jsonl").read_text().splitlines()
    return json.loads(lines[-1]) if len(lines) > 1 else {}
