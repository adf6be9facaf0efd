"""Preparation holds memory flat: six times the text takes no more."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WORDS


def peak(source: Path, tokenizer: Path, out: Path) -> float:
    """The most memory, in MiB, that `sinktrain prepare` held."""
    command = [sys.executable, "-m", "sinktrain", "prepare", "--source", str(source), "--tokenizer", str(tokenizer)]
    child = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
def test_six_times_the_text_takes_no_more_memory(tokenizer_folder: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    found = {}
    for name, size in (("small", 6), ("large", 36)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for _ in range(size * 100):
                json.dump({"text": " ".join(rng.choices(WORDS, k=2500))}, file)
                file.write("\n")
        found[name] = peak(tmp_path / f"{name}.jsonl", tokenizer_folder, tmp_path / name)
    assert (tmp_path / "large.jsonl").stat().st_size > 25 * 2**20
    assert found["large"] < found["small"] + 12, found
