"""Starts runs of one or several ranks as real processes, forked from one that has imported everything, in a second.

As a program it reads jobs, a line of JSON each, and answers with a line of JSON each. `Ranks` is the other end.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How the ranks of a run ended: exit statuses (negative: by that signal), seconds, what they printed."""

    statuses: list[int]
    seconds: float
    out: str
    left: list[int]
    """Processes of the run that were still there."""


class Ranks:
    """The process that runs are forked from."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "forking.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=HERE,
        )  # fmt: skip

    def run(self, module: str, options: dict[str, Any], ranks: int = 1, **job: Any) -> Ended:
        """Runs `module.main(options)` on so many ranks.

        Args:
            module: in this folder.
            options: with the key `out`, a folder.
            ranks: how many processes.
            job: `signals`, a list of [seconds, rank, signal]; `together`, whether all are killed when one is, as the
                launcher would; `timeout` in seconds, after which all are killed.
        """
        Path(options["out"]).mkdir(parents=True, exist_ok=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        line = json.dumps({"module": module, "options": {**options, "ranks": ranks}, "ranks": ranks, **job})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has died"
        return Ended(**json.loads(answer))

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _child(job: dict[str, Any], rank: int, port: int) -> None:
    """Never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        if job["ranks"] > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["ranks"]), LOCAL_WORLD_SIZE=str(job["ranks"]),
                GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
            )  # fmt: skip
        os.environ.update(job.get("environment", {}))
        out = os.open(Path(job["options"]["out"], f"out-{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        importlib.import_module(job["module"]).main(job["options"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run(job: dict[str, Any]) -> dict[str, Any]:
    begun, port = time.monotonic(), _port()
    children = []
    for rank in range(job["ranks"]):
        number = os.fork()
        if number == 0:
            _child(job, rank, port)
        children.append(number)
    statuses: dict[int, int] = {}
    signals = sorted(job.get("signals", []))
    while len(statuses) < len(children):
        now = time.monotonic() - begun
        while signals and now >= signals[0][0]:
            _, rank, number = signals.pop(0)
            if rank not in statuses:
                os.kill(children[rank], number)
        if job.get("together") and any(status < 0 for status in statuses.values()):
            for child in children:
                _kill_group(child)
        if now > job.get("timeout", 120):
            for child in children:
                _kill_group(child)
        for rank, child in enumerate(children):
            if rank not in statuses:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    seconds = time.monotonic() - begun
    left = [child for child in children if _group_alive(child, 6.0)]
    for child in left:
        _kill_group(child)
    out = "".join(Path(job["options"]["out"], f"out-{rank}.txt").read_text() for rank in range(job["ranks"])
                  if Path(job["options"]["out"], f"out-{rank}.txt").exists())  # fmt: skip
    return {"statuses": [statuses[rank] for rank in range(job["ranks"])], "seconds": seconds, "out": out, "left": left}


def _group_alive(group: int, seconds: float) -> bool:
    """Whether processes that a rank started are still there after so long; a killed rank's loaders notice in 5 s."""
    end = time.monotonic() + seconds
    while True:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        if time.monotonic() > end:
            return True
        time.sleep(0.02)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def serve() -> None:
    """Reads jobs until there are no more."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what imports print is no answer
    for module in ("strategy_run", "resume_run"):
        importlib.import_module(module)
    for line in sys.stdin:
        os.write(answers, json.dumps(_run(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    serve()
