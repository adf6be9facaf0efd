#!/usr/bin/env python3
"""How fast `sinktrain fit` trains beside `transformers.Trainer` and litgpt: the same model, samples and settings.

    .venv/bin/python scripts/bench_training.py --make-litgpt            makes .venv-litgpt first: once, about 2 minutes
    .venv/bin/python scripts/bench_training.py                          llama-9m on a CPU, or pythia-160m on a GPU
    .venv/bin/python scripts/bench_training.py --compile                all of them compiled
    .venv/bin/python scripts/bench_training.py --model llama-60m --vocabulary 32000 --batch-size 2 --steps 20
    .venv/bin/python scripts/bench_training.py --contestants none token --rounds 20    what a sink token costs
    .venv/bin/python scripts/bench_training.py --quick                  that everything runs: a minute, no figures

Contestants take turns (A B C A B C ...), each in a process of its own. All have the same weights, the same samples in
the same order, the same precision and threads, fused AdamW, clipping by a norm of 1, a cosine and a log line every ten
steps. A step's time is from the end of an optimizer step to the end of the next, the same way for all; tokens/s go by
the median step of a run, and count every position. The comparison is refused when the losses before the first step
differ. `--memory same` gives all the malloc settings that sinktrain makes for itself (sinktrain.base.allocator).

Prints a table, and adds a line a run to runs/bench-training.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers.contest import MALLOC
from peers.training_figures import (
    PEAKS,
    TITLES,
    Runs,
    disagreement,
    mean_to_median,
    peak_flops,
    table,
    tokens_per_second,
)
from peers.training_material import model_config, write_model, write_rows, write_text

from sinktrain.base.errors import UserError
from sinktrain.evaluation.results import environment

SCRIPTS = Path(__file__).resolve().parent
LITGPT = "0.5.13"
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"model": "llama-9m", "vocabulary": 4096, "length": 256, "batch_size": 8, "precision": "32", "steps": 40},
    "cuda": {"model": "pythia-160m", "vocabulary": 50304, "length": 2048, "batch_size": 16, "precision": "bf16",
             "steps": 80},
}  # fmt: skip
QUICK = {"model": "llama-tiny", "vocabulary": 256, "length": 32, "batch_size": 2, "steps": 4, "warmup": 2, "rounds": 1}
TOLERANCE = {"32": 1e-4, "bf16": 2e-2}
"""How far losses before the first step may be apart: kernels and the order of sums differ, and bf16 has 8 bits."""


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the defaults of its device.

    Raises:
        UserError: no step would be timed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", help="a file of configs/model that trains from scratch")
    parser.add_argument("--vocabulary", type=int, help="rows of the embedding")
    parser.add_argument("--sequence-length", dest="length", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--precision", choices=list(TOLERANCE), help="32 or bf16 (mixed)")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all")
    parser.add_argument("--steps", type=int, help="optimizer steps of a run")
    parser.add_argument("--warmup", type=int, default=10, help="first steps of a run that are not timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--contestants", nargs="+", default=["none", "token", "trainer", "litgpt"], choices=list(TITLES)
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every process; default: all cores")
    parser.add_argument("--memory", default="own", choices=["own", "same"], help="malloc: each its own, or all ours")
    parser.add_argument("--litgpt", type=Path, default=Path(".venv-litgpt/bin/python"), help="a Python that has litgpt")
    parser.add_argument("--make-litgpt", action="store_true", help="make that environment first")
    parser.add_argument("--peak-flops", type=float, help=f"of the device; known for {', '.join(PEAKS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-training.jsonl"))
    parser.add_argument("--quick", action="store_true", help="tiny model, few steps")
    options = parser.parse_args(arguments)
    for name, value in (DEFAULTS[options.device] | (QUICK if options.quick else {})).items():
        if getattr(options, name) is None or options.quick:
            setattr(options, name, value)
    if not 1 <= options.warmup < options.steps:
        raise UserError(f"--warmup {options.warmup}: must be 1 or more and below --steps {options.steps}.")
    return options


def make_litgpt(python: Path) -> None:
    """An environment with litgpt and the torch release that runs here."""
    subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    release = torch.__version__.partition("+")[0]
    # An index may have the very build that runs here; PyPI has the release alone.
    if subprocess.run([*pip, f"torch=={torch.__version__}"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*pip, f"torch=={release}"], check=True)
    subprocess.run([*pip, f"torch=={release}", f"litgpt=={LITGPT}"], check=True)


def write_material(options: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Writes the model, the text and the samples; returns the model's sizes."""
    config = model_config(options.model, options.vocabulary)
    longest = config.get("max_position_embeddings", options.length)
    config["max_position_embeddings"] = max(longest, options.length)
    sizes = write_model(config, folder / "model")
    samples = options.steps * options.batch_size * options.accumulation
    write_text(folder / "model", max(20_000, 2 * samples * options.length), folder / "data")
    write_rows(folder / "data", options.length, samples, folder / "rows.npy")
    return sizes


def make_job(options: argparse.Namespace, folder: Path, contestant: str) -> dict[str, Any]:
    """What a contestant is told."""
    names = ("length", "batch_size", "accumulation", "steps", "warmup", "precision", "compile", "device", "threads")
    job = {name: getattr(options, name) for name in names}
    job |= {"model": str(folder / "model"), "data": str(folder / "data"), "rows": str(folder / "rows.npy")}
    job |= {"contestant": contestant, "result": str(folder / "result.json"), "log_every": 10}
    return job | {"learning_rate": 3e-4, "learning_rate_warmup": min(10, options.steps - 1)}


def run(options: argparse.Namespace, folder: Path, contestant: str) -> dict[str, Any]:
    """Runs a contestant in a process of its own.

    Raises:
        UserError: it failed.
    """
    mine, result = folder / "job.json", folder / "result.json"
    mine.write_text(json.dumps(make_job(options, folder, contestant)))
    result.unlink(missing_ok=True)
    python = str(options.litgpt) if contestant == "litgpt" else sys.executable
    module = f"peers.run_{contestant if contestant in ('trainer', 'litgpt') else 'sinktrain'}"
    variables = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(SCRIPTS)}
    variables |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "0" if options.device == "cuda" else ""}
    variables |= MALLOC if options.memory == "same" else {}
    done = subprocess.run([python, "-m", module, str(mine)], env=variables, capture_output=True, text=True)
    if done.returncode or not result.exists():
        (log := options.out.with_suffix(".log")).write_text(done.stdout + done.stderr)
        raise UserError(f"--contestants {contestant}: failed, as {log} tells; mend that, or leave it out.")
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def compare(options: argparse.Namespace) -> None:
    """All rounds, and the table.

    Raises:
        UserError: a contestant failed, or they did not do the same work.
    """
    names = [name for name in TITLES if name in options.contestants]
    if "litgpt" in names and not options.litgpt.is_file():
        print(f"litgpt is left out: there is no {options.litgpt}; --make-litgpt makes it.")
        names.remove("litgpt")
    positions = options.length * options.batch_size * options.accumulation
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_material(options, Path(folder))
        print(heading(options, sizes), flush=True)
        for turn in range(options.rounds):
            for name in names:
                found = run(options, Path(folder), name)
                runs[name].append(found)
                keep(options, turn, name, sizes, found)
                rate = tokens_per_second(found, positions)
                print(f"  round {turn + 1}: {TITLES[name]:<28}{rate:>12,.0f} tokens/s, mean/median step "
                      f"{mean_to_median(found):.3f}", flush=True)  # fmt: skip
            if (problem := disagreement(runs, TOLERANCE[options.precision])) is not None:
                raise UserError(f"the contestants do not do the same work: {problem}.")
    print_table(options, runs, positions, sizes)


def print_table(options: argparse.Namespace, runs: Runs, positions: int, sizes: dict[str, int]) -> None:
    """The table of all rounds."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else ""
    peak = options.peak_flops or peak_flops(name)
    print(f"\nmedians of {options.rounds} rounds; ratios are geometric means over rounds; MFU by 6 N + 12 L d T")
    print("\n".join(table(runs, positions, sizes, options.length, peak)))


def heading(options: argparse.Namespace, sizes: dict[str, int]) -> str:
    """What runs, and where."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    way = "compiled" if options.compile else "eager"
    return (
        f"{options.model}, {sizes['parameters']:,} parameters, vocabulary {options.vocabulary}; {options.batch_size} x "
        f"{options.length} positions x {options.accumulation}, {options.precision}, {way}; {device}, {options.threads} "
        f"threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, malloc {options.memory}; {options.steps} "
        f"steps, the first {options.warmup} not timed"
    )


def keep(options: argparse.Namespace, turn: int, name: str, sizes: dict[str, int], found: dict[str, Any]) -> None:
    """Adds a line to the record."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    line = {"contestant": name, "round": turn, "settings": settings, "model": sizes, **found}
    line |= {"environment": environment(), "load": os.getloadavg()[0]}
    with options.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    """Returns the exit status: 0, or 2 with a sentence on stderr."""
    try:
        options = read_options()
        if options.make_litgpt:
            make_litgpt(options.litgpt)
        compare(options)
    except UserError as error:
        print(f"bench_training: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
