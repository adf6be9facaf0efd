"""Trains a recipe once for every kind of sink and every seed, streams held-out text through each, and prints the table.

    python scripts/compare_kinds.py recipes/tiny --jobs 2           two runs at a time, each on half of the cores
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
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def run(recipe: Path, out: Path, kind: str, seed: int, more: list[str], threads: int | None = None) -> None:
    """Trains and evaluates one kind with one seed, on so many threads (None: all), unless that is done."""
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
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
        print(f"\n[{kind}, seed {seed}] {' '.join(command[3:])}", flush=True)
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        done.touch()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a folder with fit.yaml and evaluate.yaml")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--out", type=Path, help="default: runs/RECIPE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on a CPU; default: 1")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs that are there")
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="all that follows goes to `sinktrain fit`")
    options = parser.parse_args()
    out = (options.out or ROOT / "runs" / options.recipe.name).resolve()
    if not options.table:
        threads = None if options.jobs == 1 else max(1, (os.cpu_count() or 1) // options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            # All kinds of a seed before the next seed, so that a table is there early.
            runs = [(kind, seed) for seed in options.seeds for kind in options.kinds]
            begun = [pool.submit(run, options.recipe, out, *each, options.fit, threads) for each in runs]
            try:
                for each in begun:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    print_table(read_runs(out, options.kinds, options.seeds), out)


if __name__ == "__main__":
    main()
