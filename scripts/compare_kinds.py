"""Trains a recipe once for every kind of sink and every seed, streams held-out text through each, and prints the table.

    python scripts/compare_kinds.py recipes/tiny
    python scripts/compare_kinds.py recipes/table3 --kinds none token --seeds 0 1 2
    python scripts/compare_kinds.py recipes/table3-small --table    only the table, from the runs that are there
    python scripts/compare_kinds.py recipes/seeds --kinds none token --fit --trainer.max_steps 500

A recipe is a folder with two files written for the kind `token` and the seed 0: `fit.yaml` and `evaluate.yaml`. Every
run gets copies of these that differ in the sink, the seeds and the folder, and nothing else; they stay beside its
results in `runs/RECIPE/KIND-SEED`. A run that is done is not done again, and one that was stopped goes on from its last
checkpoint.

Runs of one seed share the initial weights and the order of the samples, so kinds are compared seed by seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from kinds_table import print_table, read_runs

ROOT = Path(__file__).resolve().parent.parent

KINDS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "zero": {"kind": "zero"},
    "logit": {"kind": "logit"},
    "k": {"kind": "kv", "value": "zero"},
    "kv": {"kind": "kv"},
    "token": {"kind": "token", "count": 1},
    "two-tokens": {"kind": "token", "count": 2},
}
"""By name, the settings of `model.sink`."""


def settings(recipe: Path, file: str, folder: Path, kind: str, seed: int) -> dict[str, Any]:
    """What `file` of the recipe says, for another sink, another seed and another folder."""
    written = f"runs/{recipe.name}/token-0"
    text = (recipe / file).read_text()
    if written not in text:
        raise SystemExit(f"{recipe / file}: must write under {written}, which other runs replace by their folder.")
    found: dict[str, Any] = yaml.safe_load(text.replace(written, str(folder)))
    if file == "fit.yaml":
        found["model"]["sink"] = {**found["model"].get("sink", {}), "count": 1, **KINDS[kind]}
        found["model"]["seed"] = found["data"]["seed"] = found["seed_everything"] = seed
    return found


def run(recipe: Path, out: Path, kind: str, seed: int, more: list[str]) -> None:
    """Trains and evaluates one kind with one seed, unless that is done."""
    folder = out / f"{kind}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, verb in (("fit.yaml", "fit"), ("evaluate.yaml", "evaluate")):
        done = folder / f"{verb}.done"
        if done.exists():
            continue
        (folder / file).write_text(yaml.safe_dump(settings(recipe, file, folder, kind, seed), sort_keys=False))
        command = [sys.executable, "-m", "sinktrain", verb, "--config", str(folder / file)]
        if verb == "fit":
            command += more
            kept = folder / "checkpoints" / "last.ckpt"
            command += ["--ckpt_path", str(kept)] if kept.exists() else []
        print(f"\n[{kind}, seed {seed}] {' '.join(command[3:])}", flush=True)
        subprocess.run(command, check=True, cwd=ROOT)
        done.touch()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a folder with fit.yaml and evaluate.yaml")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--out", type=Path, help="default: runs/RECIPE")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs that are there")
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="all that follows goes to `sinktrain fit`")
    options = parser.parse_args()
    out = options.out or Path("runs") / options.recipe.name
    if not options.table:
        for seed in options.seeds:  # all kinds of a seed before the next seed, so that a table is there early
            for kind in options.kinds:
                run(options.recipe, out, kind, seed, options.fit)
    print_table(read_runs(out, options.kinds, options.seeds), out)


if __name__ == "__main__":
    main()
