#!/usr/bin/env python3
"""Three ways to a loss from hidden states: time, memory beyond the inputs, and error against float64.

    .venv/bin/python scripts/bench_loss.py                                      about 4 minutes on 2 cores
    .venv/bin/python scripts/bench_loss.py --shapes 49152x576x8192 --rounds 1   vocabulary x width x tokens
    .venv/bin/python scripts/bench_loss.py --quick                              that everything runs

The ways: logits in one piece with `F.cross_entropy`, `F.linear_cross_entropy` (torch 2.13) with its options left to
it and set to its most accurate, and ours (`sinktrain.training.loss`), eager and compiled. Each gives the loss and the
gradients of hidden states and weight. With bf16 the weight stays in float32 under autocast, as in training with
`bf16-mixed`; errors are against float64 on the same inputs, rounded to bf16.

The ways take turns, each in a process of its own, with malloc as `sinktrain fit` has it. Memory comes from another
process: how far its peak (on a GPU: of what torch has allocated) rises in the second call. On a CPU that needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sinktrain.base.allocator import keep_memory
from sinktrain.training.loss import next_token_loss

PIECE = 512  # rows of the float64 reference at once
SHAPES = ["4096x256x2048", "49152x576x1024", "49152x576x8192"]
Loss = Callable[[Tensor, nn.Linear, Tensor], Tensor]


def in_one_piece(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(states).float(), targets, reduction="sum")


def linear_cross_entropy(policy: str) -> Loss:
    def loss(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
        options = nn.LinearCrossEntropyOptions(acc_policy=policy)
        weight = head.weight.to(states.dtype)  # it takes no two dtypes, even under autocast
        return F.linear_cross_entropy(states, weight, targets, reduction="sum", options=options)

    return loss


def ours(compiled: bool) -> Loss:
    def loss(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
        # A first label, which nothing predicts, and a last state, which predicts nothing.
        labels = F.pad(targets, (1, 0))
        return next_token_loss(F.pad(states, (0, 0, 0, 1))[None], head, labels[None], compiled=compiled)[0]

    return loss


WAYS: dict[str, Loss] = {
    "in one piece": in_one_piece,
    "F.linear_cross_entropy": linear_cross_entropy("auto"),
    "F.linear_cross_entropy, accurate": linear_cross_entropy("accurate"),
    "ours": ours(False),
    "ours, compiled": ours(True),
}


def usable() -> list[str]:
    """The ways that this torch has."""
    return [name for name in WAYS if not name.startswith("F.") or hasattr(F, "linear_cross_entropy")]


def make_inputs(vocabulary: int, width: int, tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, D), weight (V, D) and targets (N), with logits that spread by 2."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return states.to(device), weight.to(device), targets.to(device)


def reference(states: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, Tensor, Tensor]:
    """The summed loss and the gradients of states and weight, in float64."""
    x, w = states.double(), weight.double()
    loss, d_states, d_weight = 0.0, torch.empty_like(x), torch.zeros_like(w)
    for start in range(0, len(x), PIECE):
        part = slice(start, start + PIECE)
        log_p = (x[part] @ w.T).log_softmax(1)
        hit = F.one_hot(targets[part], len(w))
        loss -= float((log_p * hit).sum())
        d_logits = log_p.exp() - hit
        d_states[part], d_weight = d_logits @ w, d_weight.addmm_(d_logits.T, x[part])
    return loss, d_states, d_weight


def distance(found: Tensor, expected: Tensor) -> float:
    """The relative error, in the 2-norm."""
    return float((found.double() - expected).norm() / expected.norm())


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Of one way: `memory` of a call; or `seconds` of each but the first, and `errors`."""
    torch.set_num_threads(job["threads"])
    device, reduced = job["device"], job["precision"] == "bf16"
    if not job["memory"]:
        keep_memory()
    states, weight, targets = make_inputs(*job["shape"], device)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight)
    states = (states.bfloat16() if reduced else states).requires_grad_()

    def call() -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            loss = WAYS[job["way"]](states, head, targets)
        return loss.detach(), *torch.autograd.grad(loss, (states, head.weight))

    if job["memory"]:
        call()  # loads what is loaded late, and compiles
        return {"memory": rise(call, device)}
    seconds = []
    for _ in range(job["calls"]):
        start = time.perf_counter()
        found = call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    rounded = head.weight.detach().bfloat16() if reduced else head.weight.detach()
    loss, *gradients = reference(states.detach(), rounded, targets)
    errors = [abs(float(found[0]) - loss) / loss]
    errors += [distance(mine, exact) for mine, exact in zip(found[1:], gradients, strict=True)]
    return {"seconds": seconds[1:], "errors": errors}


def rise(call: Callable[[], Any], device: str) -> int:
    """How many bytes a call needs at its peak beyond what is in use before it, its result among them."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
    before = _peak_resident()
    call()
    return _peak_resident() - before


def _peak_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lines: one way each. The first of its runs has the memory, the others have time and errors."""
    first = next(iter(runs))
    lines = [f"{'':<34}{'ms':>8}{'x ' + first:>16}{'memory':>12}{'loss':>10}{'d states':>10}{'d weight':>10}"]
    times = {way: [statistics.median(each["seconds"]) for each in found[1:]] for way, found in runs.items()}
    for way, found in runs.items():
        ratio = statistics.median(mine / base for mine, base in zip(times[way], times[first], strict=True))
        memory = found[0]["memory"] / 2**20
        errors = "".join(f"{error:>10.0e}" for error in found[1]["errors"])
        lines.append(f"{way:<34}{1000 * statistics.median(times[way]):>8.1f}{ratio:>16.2f}{memory:>8.0f} MiB{errors}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="vocabulary x width x tokens")
    parser.add_argument("--precisions", nargs="+", default=["32", "bf16"], choices=["32", "bf16"])
    parser.add_argument("--ways", nargs="+", default=usable(), choices=usable())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=4, help="in each process; the first is not timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(json.loads(options.job))))
        return
    shapes = ["64x8x32"] if options.quick else options.shapes
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {options.threads} threads, load {os.getloadavg()[0]:.1f}; medians")
    for shape in shapes:
        for precision in options.precisions:
            job = {"shape": [int(size) for size in shape.split("x")], "precision": precision, "calls": options.calls}
            job |= {"threads": options.threads, "device": options.device}
            runs = {way: [run({**job, "way": way, "memory": True})] for way in options.ways}
            for _ in range(1 if options.quick else options.rounds):
                for way in options.ways:
                    runs[way].append(run({**job, "way": way, "memory": False}))
            print(f"\nvocabulary x width x tokens {shape}, {precision}; errors relative to float64")
            print("\n".join(rows(runs)), flush=True)


if __name__ == "__main__":
    main()
