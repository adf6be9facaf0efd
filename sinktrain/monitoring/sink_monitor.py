"""The birth of a sink, watched: how many heads have one, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sinktrain.base.errors import at_least
from sinktrain.evaluation.attention import THRESHOLD
from sinktrain.monitoring.monitor import Monitor
from sinktrain.streaming.observe import attention_columns
from sinktrain.training.held_out import fits, held_out, sequences
from sinktrain.training.run_record import run_folder

FILE = "sinks.jsonl"
_ROWS = 25  # sequences at once, so that memory stays small


class SinkMonitor(Monitor):
    """Logs where attention goes on a fixed batch of held-out text, before the first step and every so many.

    Places are `sink` (of several, `sink_0` ...), the first tokens of text `text_1` ..., and `outlet`, what an attention
    with kind `zero`, `logit` or `kv` can attend to beside its keys.

    - `sinks/PLACE`: the attention on it, alpha_k of Gu et al. (arXiv 2410.10781, section 3.1): the mean over the
      queries i >= k, here also over heads and sequences. (For the outlet: over all queries.)
    - `sinks/PLACE_heads`: their Sink_k: the share of all heads with alpha_k > 0.3, in a sequence; the mean over
      sequences. They count positions from 1: of kind `none`, `text_1_heads` is Sink_1; with one sink token,
      `sink_heads` is Sink_1 and `text_1_heads` Sink_2.
    - `sinks/cost_share`: how much of the time since the last look this one took.

    `sinks.jsonl` beside the logs (see `run_folder`) has a line for each look, with alpha by place, layer and head; of
    a step that is there twice, in a resumed run, the later line counts.

    The text is the same for every run on the same data: each sequence is the model's sinks, then the same `length`
    tokens.

    Args:
        every_n_steps: optimizer steps between two looks.
        sequences: how many; the paper's 100 by default.
        length: tokens of text in each; the paper's 64 by default.
        first: how many of the first tokens of text to watch.
        text: A folder that `sinktrain prepare` made, whose validation part is taken; by default the run's own.
    """

    def __init__(
        self, every_n_steps: int = 250, sequences: int = 100, length: int = 64, first: int = 4, text: str | None = None
    ) -> None:
        super().__init__("sinks", every_n_steps)
        at_least("SinkMonitor.sequences", sequences, 1)
        at_least("SinkMonitor.first", first, 1)
        at_least("SinkMonitor.length", length, first)
        self.sequences, self.length, self.first, self.text = sequences, length, first, text
        self._file: Path | None = None
        self._checked = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Chooses the text."""
        if stage != "fit":
            return
        fits(pl_module, len(pl_module.sink_ids) + self.length, f"SinkMonitor.length {self.length}")
        texts = held_out(trainer, pl_module, self.text, "SinkMonitor.text")
        rows = sequences(texts, self.sequences, self.length, "SinkMonitor.length")
        sinks = torch.tensor(pl_module.sink_ids, dtype=torch.int64)
        self.rows = torch.cat((sinks.expand(len(rows), -1), rows), dim=1)
        count = len(sinks)
        names = ["sink"] if count == 1 else [f"sink_{i}" for i in range(count)]
        self.places = names + [f"text_{i + 1}" for i in range(self.first)]
        folder = run_folder(trainer)
        self._file = folder / FILE if folder is not None and trainer.is_global_zero else None

    def look(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        """The figures, without `sinks/`."""
        alpha = self._alpha(module)
        by_head = {name: part.mean(dim=0) for name, part in alpha.items()}
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            rounded = {name: (part * 1e4).round().div(1e4).tolist() for name, part in by_head.items()}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.global_step, "attention": rounded}) + "\n")
        means = {name: float(part.mean()) for name, part in by_head.items()}
        return means | {f"{name}_heads": float((part > THRESHOLD).double().mean()) for name, part in alpha.items()}

    def _alpha(self, module: Any) -> dict[str, Tensor]:
        """By place: (sequences, layers, H), float64 on the CPU."""
        columns, outlets = [], []
        for rows in self.rows.split(_ROWS):
            found = attention_columns(
                module.model,
                rows.to(module.device),
                range(len(self.places)),
                check=not self._checked,
            )
            self._checked = True
            columns.append(found[0])
            outlets += [] if found[1] is None else [found[1]]
        alpha = dict(zip(self.places, torch.cat(columns).double().cpu().unbind(dim=-1), strict=True))
        return {"outlet": torch.cat(outlets).double().cpu(), **alpha} if outlets else alpha
