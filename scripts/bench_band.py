#!/usr/bin/env python3
"""What a training step with the band of a streaming cache (`model.band`) costs beside one with full attention.

    .venv/bin/python scripts/bench_band.py                                       about 10 minutes on 2 cores
    .venv/bin/python scripts/bench_band.py --lengths 4096 --bands 1+255 --rounds 3
    .venv/bin/python scripts/bench_band.py --lengths 4096 16384 65536 --width 1024 --layers 8 --precision bf16   a GPU
    .venv/bin/python scripts/bench_band.py --quick                               that everything runs

A step is forward, loss and backward of one sample of T positions through a random Llama, as `SinkModule` has them.
Full attention is what a `SinkModule` without a band uses: the fused kernel of torch without a mask. The ways take turns
in one process (A B C A B C ...), after one step each that is not timed; shown is the median of the rounds' ratios.
Memory comes from another process for each way: how far its peak (on a GPU: of what torch has allocated) rises in the
second step. On a CPU that needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_loss import rise
from transformers import LlamaConfig, LlamaForCausalLM

from sinktrain.base.allocator import keep_memory
from sinktrain.streaming import CacheSpec
from sinktrain.streaming.train import Banded
from sinktrain.training.loss import next_token_loss
from sinktrain.training.masks import unmasked_attention

FULL = "full"
HEAD = 64  # dimensions of a head


def make_step(way: str, length: int, options: dict[str, Any]) -> Callable[[], float]:
    """A training step of `way`, which returns its loss."""
    torch.manual_seed(0)
    width, device = options["width"], options["device"]
    config = LlamaConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=options["layers"],
        num_attention_heads=width // HEAD, num_key_value_heads=max(1, width // HEAD // 2),
        max_position_embeddings=length + 2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device).train()
    ids = torch.randint(0, 4096, (1, length), generator=torch.Generator().manual_seed(1)).to(device)
    if way == FULL:
        model.config._attn_implementation = unmasked_attention(model)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    else:
        inputs = Banded(model, CacheSpec.parse(way)).inputs(ids)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=options["precision"] == "bf16"):
            hidden = model.base_model(**inputs).last_hidden_state
            loss, _, tokens = next_token_loss(hidden, model.lm_head, ids)
        (loss / tokens).backward()
        model.zero_grad()
        return float(loss.detach() / tokens)

    return step


def seconds(step: Callable[[], float]) -> float:
    """Of one step; reading its loss waits for the device, and its gradients are needed for the next."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """`seconds` of each way and round; or `memory` in bytes of one way."""
    torch.set_num_threads(job["threads"])
    if job["memory"]:
        step = make_step(job["ways"][0], job["length"], job)
        step()  # loads what is loaded late, and compiles
        return {"memory": rise(step, job["device"])}
    keep_memory()
    steps = {way: make_step(way, job["length"], job) for way in job["ways"]}
    losses = {way: step() for way, step in steps.items()}
    rounds = [{way: seconds(step) for way, step in steps.items()} for _ in range(job["rounds"])]
    return {"losses": losses, "seconds": {way: [each[way] for each in rounds] for way in job["ways"]}}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(length: int, times: dict[str, list[float]], memory: dict[str, int], losses: dict[str, float]) -> list[str]:
    """Lines: one way each, beside full attention."""
    lines = []
    for way, own in times.items():
        ratio = statistics.median(full / mine for full, mine in zip(times[FULL], own, strict=True))
        name = "full attention" if way == FULL else f"band {way}"
        figures = f"{statistics.median(own):>10.3f}{ratio:>10.2f}{memory[way] / 2**20:>12.0f}"
        lines.append(f"{length:>8}  {name:<16}{figures}{memory[way] / memory[FULL]:>10.2f}{losses[way]:>9.4f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--bands", nargs="+", default=["1+255", "1+1023"])
    parser.add_argument("--width", type=int, default=256, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--precision", default="32", choices=["32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="tiny samples, one round")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(json.loads(options.job))))
        return
    if options.quick:
        options.lengths, options.bands, options.width, options.rounds = [64, 256], ["1+31"], HEAD, 1
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {options.threads} threads, load {os.getloadavg()[0]:.1f}; Llama of "
          f"{options.layers} layers and width {options.width}, precision {options.precision}; medians")  # fmt: skip
    print(f"{'T':>8}  {'':<16}{'s/step':>10}{'x speed':>10}{'MiB':>12}{'x memory':>10}{'loss':>9}")
    for length in options.lengths:
        job = {**vars(options), "length": length, "ways": [FULL, *options.bands], "memory": False}
        timed = run(job)
        memory = {way: run({**job, "ways": [way], "memory": True})["memory"] for way in job["ways"]}
        print("\n".join(rows(length, timed["seconds"], memory, timed["losses"])), flush=True)


if __name__ == "__main__":
    main()
