#!/usr/bin/env python3
"""Runs a command and writes what it took: `timed.py runs/smollm2/times/full.json sinktrain fit ...`.

Seconds by the clock, and the highest resident memory of the largest of its processes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def main(out: Path, command: list[str]) -> int:
    """The command's exit status; the file is written where that is 0."""
    began = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - began
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if status == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": command, "seconds": round(seconds, 1), "peak_bytes": peak}
        out.write_text(json.dumps(record, indent=1) + "\n")
    return status


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} OUT.json COMMAND ...")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
