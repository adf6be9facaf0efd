"""What `sinktrain.base.allocator.keep_memory` gains when training on a CPU.

    python scripts/bench_allocator.py

Trains a Llama of 4 million parameters for a few steps, in float32 and in bf16 autocast, in fresh processes that take
turns: malloc as it is, with `keep_memory()`, and with malloc's environment variables. Takes 2 to 3 minutes on 2 cores.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

BATCH, LENGTH, VOCABULARY = 8, 512, 8192
STEPS = 4  # the first is not counted
ROUNDS = 3
PRECISIONS = ("float32", "bf16 autocast")
VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26)}
FIGURES = ("faults a step", "peak MB")
WAYS = ("as it is", "keep_memory()", "environment")


def train(way: str) -> dict[str, float]:
    """Runs in a process of its own.

    Returns:
        tokens/s of the fastest step in each precision, since other work on the machine disturbs that one least; page
        faults of the last step; the peak of resident memory in MB.
    """
    if way == "keep_memory()":
        from sinktrain.base.allocator import keep_memory

        if not keep_memory():
            sys.exit("keep_memory() does not apply here: this is not glibc.")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    ids_BT = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    outcome: dict[str, float] = {}
    for precision in PRECISIONS:
        seconds = []
        for _ in range(STEPS):
            faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
                loss = model(input_ids=ids_BT, labels=ids_BT).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        outcome[precision] = BATCH * LENGTH / min(seconds[1:])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    outcome["faults a step"] = usage.ru_minflt - faults
    outcome["peak MB"] = usage.ru_maxrss / 1024
    return outcome


def in_new_process(way: str) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    if way == "environment":
        environment.update(VARIABLES)
    done = subprocess.run(
        [sys.executable, __file__, way], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    outcome: dict[str, float] = json.loads(done.stdout)
    return outcome


def main() -> None:
    import torch
    import transformers

    processor, cores = platform.processor() or platform.machine(), os.cpu_count()
    print(f"{processor}, {cores} cores, {torch.get_num_threads()} threads, {' '.join(platform.libc_ver())}, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"Llama, 4.4M parameters, {BATCH} x {LENGTH} tokens a step; medians of {ROUNDS} processes a row, in turns")
    outcomes: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            outcomes[way].append(in_new_process(way))
    header = "".join(f"{precision + ' tokens/s':>26}{'ratio':>7}" for precision in PRECISIONS)
    print(f"\n{'malloc':<15}{header}" + "".join(f"{figure:>15}" for figure in FIGURES))
    for way in WAYS:
        row = f"{way:<15}"
        for precision in PRECISIONS:
            speeds = [outcome[precision] for outcome in outcomes[way]]
            ratios = [speed / plain[precision] for speed, plain in zip(speeds, outcomes[WAYS[0]], strict=True)]
            row += f"{statistics.median(speeds):>26,.0f}{statistics.median(ratios):>7.2f}"
        print(row + "".join(f"{statistics.median(run[figure] for run in outcomes[way]):>15,.0f}" for figure in FIGURES))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(train(sys.argv[1])))
    else:
        main()
