#!/usr/bin/env python3
"""Prints the table of recipes/README.md: each row is one `sinktrain plan`, whose command is printed below the table.

.venv/bin/python scripts/plan_table.py                            # half a minute; nothing is downloaded or measured
"""

from __future__ import annotations

import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from sinktrain.cli import main as sinktrain

PRICE = "2.5"  # dollars a GPU hour, an assumption to replace
MODELS = {
    "160M": "--model configs/model/pythia-160m.yaml --vocabulary 50277 --strategy ddp --sequence_length 2048 "
    "--global_batch_tokens 2097152 --tokens 300e9",
    "1B": "--model configs/model/llama-1b.yaml --vocabulary 32000 --strategy fsdp2 --sequence_length 2048 "
    "--global_batch_tokens 2097152 --tokens 1e12",
    "8B": "--model configs/model/llama-8b.yaml --vocabulary 128256 --strategy fsdp2 --sequence_length 8192 "
    "--global_batch_tokens 4194304 --tokens 1e12",
}
ROWS = (("160M", 8, 32), ("160M", 64, 16), ("160M", 512, 2), ("1B", 8, 32), ("1B", 64, 16), ("1B", 512, 2),
        ("8B", 8, 8), ("8B", 64, 8), ("8B", 512, 1))  # fmt: skip
"""Model, GPUs, micro-batch: what leaves the global batch as it is on all numbers of GPUs."""
HEAD = ("model", "GPUs", "strategy", "micro-batch", "global batch, tokens", "parameters", "gradients", "optimizer",
        "activations", "working", "GiB a GPU", "tokens/s", "for tokens", "hours", "cost")  # fmt: skip


def main() -> int:
    commands = []
    for cells in (HEAD, ["---"] * len(HEAD)):
        print("| " + " | ".join(cells) + " |")
    for model, gpus, batch in ROWS:
        command = f"plan {MODELS[model]} --gpus {gpus} --batch_size {batch} --gpu h100 --mfu 0.35 --price {PRICE}"
        commands.append(f"sinktrain {command}")
        print("| " + " | ".join(row(model, command)) + " |", flush=True)
    print("\n```bash", *commands, "```", sep="\n")
    return 0


def row(model: str, command: str) -> list[str]:
    """The cells of one command's output.

    Raises:
        SystemExit: it does not fit.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as out, redirect_stdout(None):
        if sinktrain([*command.split(), "--out", out.name]):
            raise SystemExit(f"does not fit: {command}")
        record = json.loads(Path(out.name).read_text())
    settings, memory, speed = record["settings"], record["memory"], record["speed"]
    parts = [f"{memory[part] / 2**30:.2f}" for part in HEAD[5:10]]
    micro = f"{settings['batch_size']} x {settings['sequence_length']:,}"
    times = f" x {settings['accumulated']}" if settings["accumulated"] > 1 else ""
    return [
        model, str(settings["gpus"]), settings["strategy"], micro + times, f"{record['step_tokens']:,}", *parts,
        f"{memory['total'] / 2**30:.1f}", f"{speed['tokens_per_second']:,.0f}", f"{speed['tokens'] / 1e9:,.0f}e9",
        f"{speed['hours']:,.1f}", f"${speed['dollars']:,.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
