"""Preparation holds memory flat: six times the text takes no more."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_templates import CHATML, chat_tokenizer
from conftest import WORDS

MESSAGE = pa.struct({"role": pa.string(), "content": pa.string()})
SCHEMA = pa.schema({"messages": pa.list_(MESSAGE)})


def peak(source: Path, tokenizer: Path, out: Path, *options: str) -> float:
    """The most memory, in MiB, that `sinktrain prepare` held."""
    command = [sys.executable, "-m", "sinktrain", "prepare", "--source", str(source), "--tokenizer", str(tokenizer)]
    child = subprocess.Popen([*command, "--out", str(out), *options], stdout=subprocess.DEVNULL)
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


@pytest.mark.slow
def test_six_times_the_conversations_take_no_more_memory(tokenizer_folder: Path, tmp_path: Path) -> None:
    chat_tokenizer(tokenizer_folder, CHATML).save_pretrained(tmp_path / "chatty")
    rng = random.Random(0)
    found = {}
    for name, size in (("small", 8), ("large", 48)):
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", SCHEMA) as file:  # of a .jsonl, 10 MB are read at once
            for _ in range(size * 6):
                said = [[" ".join(rng.choices(WORDS, k=500)) for _ in range(4)] for _ in range(10)]
                talks = [
                    [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row)]
                    for row in said
                ]
                file.write_table(pa.table({"messages": talks}, SCHEMA))
        found[name] = peak(tmp_path / f"{name}.parquet", tmp_path / "chatty", tmp_path / name, "--chat", "true")
    assert (tmp_path / "large" / "train.bin").stat().st_size > 10 * 2**20
    assert found["large"] < found["small"] + 12, found
