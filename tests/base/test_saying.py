"""What a command says, to whoever reads it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sinktrain.base.terminal import Clock

TALKS = """
import sys
from sinktrain.base.terminal import say
for line in range(20000):
    say(f"line {line}")
print("all done", file=sys.stderr)
"""


def test_the_work_goes_on_when_nobody_reads() -> None:
    process = subprocess.Popen([sys.executable, "-c", TALKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 0
    assert said == "all done\n"


def test_the_clock_speaks_while_one_thing_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every 10 s at first, later less often, and not when all is done."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(4000)
    for _ in range(4000):
        now[0] += 1
        clock.say(1, "row")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "row: 0% in 10 s, about 66 min left"
    assert lines[19] == "row: 5% in 3 min, about 63 min left"
    assert 20 + 50 < len(lines) < 20 + 70  # ln(4000 / 200) / ln(1.05) = 61
    assert "about 0 s" not in lines[-1]
