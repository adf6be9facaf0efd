"""Starts scripts/launch.sh and scripts/slurm.sh as a person or a scheduler does, and looks at what they leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LAUNCH = str(ROOT / "scripts/launch.sh")
STAND_IN = f"{sys.executable} {HERE / 'stand_in.py'}"
SHORT = 60  # seconds that nothing here takes


def environment(**more: str) -> dict[str, str]:
    """One thread a rank, this Python, this working tree."""
    ours = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **ours, **more}


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A launcher with the stand-in for `sinktrain`."""
    run = subprocess.Popen(
        [LAUNCH, *arguments], env=environment(SINKTRAIN=STAND_IN, **variables), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _started.append(run)
    return run


_started: list[subprocess.Popen[str]] = []


def end_what_was_started() -> None:
    """After a test that has failed; the ranks go with their launcher."""
    for run in _started:
        run.kill()
    _started.clear()


def until(condition: Callable[[], bool]) -> None:
    """Waits for it, and fails when it does not come."""
    end = time.monotonic() + SHORT
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def written(folder: Path, *names: str) -> Callable[[], bool]:
    """Whether the ranks have written these files."""
    return lambda: all((folder / name).exists() and (folder / name).read_text() for name in names)


def alive(word: str) -> list[str]:
    """The command lines with `word` of processes that run (one that has ended and is not yet reaped has none)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if word in command and process.name != str(os.getpid()):
            found.append(command)
    return found


def has_two_machines() -> bool:
    """Whether this machine lets us make network namespaces and a cable between two of them."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    tried = "ip link add v0 type veth peer name v1 && unshare --net --uts true && hostname machine-0"
    command = ["unshare", "--map-root-user", "--net", "--uts", "bash", "-c", tried]
    return subprocess.run(command, capture_output=True).returncode == 0


def on_two_machines(commands: Callable[[str, int], str], **variables: str) -> tuple[list[int], str]:
    """Runs commands(address of machine 0, number) on machines 0 and 1; gives their statuses and all that they printed.

    Where namespaces are forbidden, two launchers of this machine meet at a port of 127.0.0.1.
    """
    with_addresses = has_two_machines()
    address = "10.77.0.1" if with_addresses else "127.0.0.1"
    both = [commands(address, number) for number in range(2)]
    print("two machines: " + ("two network namespaces, 10.77.0.1 and 10.77.0.2" if with_addresses else "two ports"))
    if with_addresses:
        script = ["unshare", "--map-root-user", "--net", "--uts", "bash", str(HERE / "two_machines.sh"), *both]
    else:
        script = ["bash", "-c", '(eval "$0") & (eval "$1"); a=$?; wait $!; echo "statuses $? $a"', *both]
    done = subprocess.run(script, env=environment(**variables), capture_output=True, text=True, timeout=300)
    statuses = done.stdout.strip().splitlines()[-1].split()
    assert statuses[0] == "statuses", done.stdout + done.stderr
    return [int(status) for status in statuses[1:]], done.stdout + done.stderr
