"""scripts/stream_4m.py leaves a record that the page can show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import some_text

from sinktrain.reporting.measurements import load_stream
from sinktrain.reporting.records import Flat
from sinktrain.reporting.sources import Sources

SCRIPT = Path(__file__).parent.parent / "scripts/stream_4m.py"


def test_the_page_reads_what_the_script_writes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(some_text(22_000, 0))
    words = ["--tokens", "40000", "--source", str(tmp_path / "text.txt"), "--cache", "1+31", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    flat = load_stream(tmp_path / "out" / "stream.json", "RUN", Sources())
    assert isinstance(flat, Flat)
    assert (flat.cache, flat.tokens, len(flat.nll), len(flat.memory)) == ("1+31", 40_000, 100, 100)
    assert [row[0] for row in flat.drift] == [10_000, 20_000, 30_000, 40_000]
    assert all(abs(mean - fresh) < 1e-3 and worst < 1e-3 for _, mean, fresh, worst in flat.drift)
