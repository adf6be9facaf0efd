"""How well a model in training streams: short, with and without sinks in the cache."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch

from sinktrain.base.errors import at_least
from sinktrain.monitoring.monitor import Monitor
from sinktrain.streaming import CacheSpec, stream_nll
from sinktrain.training.held_out import fits, held_out, sequences


class StreamingProbe(Monitor):
    """Streams a short held-out text through caches of one size C, before the first step and every so many.

    - `probe/ppl_0+C`, `probe/ppl_1+(C-1)`, `probe/ppl_4+(C-4)`, and with k trained sinks `probe/ppl_k+(C-k)`, the
      numbers written out: perplexity of the tokens that every kind of sink predicts with a full cache. While a model
      has no sink, all are alike; once it has one, 0+C explodes.
    - `probe/cost_share`: how much of the time since the last look this one took.

    Streams in the precision of the weights, with sinks at their distance in the cache.

    Args:
        every_n_steps: optimizer steps between two looks.
        size: C.
        tokens: of the text; more than C + 1.
        text: A folder that `sinktrain prepare` made, whose validation part is taken; by default the run's own.
        chunk: how many tokens are run at once.
    """

    def __init__(
        self, every_n_steps: int = 500, size: int = 256, tokens: int = 2048, text: str | None = None, chunk: int = 512
    ) -> None:
        super().__init__("probe", every_n_steps)
        at_least("StreamingProbe.size", size, 5)
        at_least("StreamingProbe.tokens", tokens, size + 2)
        at_least("StreamingProbe.chunk", chunk, 1)
        self.size, self.tokens, self.text, self.chunk = size, tokens, text, chunk

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Chooses the text and the caches."""
        if stage != "fit":
            return
        sinks = pl_module.sink_ids
        at_least("StreamingProbe.size", self.size, len(sinks) + 1)
        fits(pl_module, self.size + 1, f"StreamingProbe.size {self.size}")  # a query sees itself as well
        texts = held_out(trainer, pl_module, self.text, "StreamingProbe.text")
        text = sequences(texts[:1], 1, self.tokens, "StreamingProbe.tokens")[0]
        self.stream = torch.cat((torch.tensor(sinks, dtype=torch.int64), text))
        self.caches = [CacheSpec(x, self.size - x) for x in sorted({0, 1, 4, len(sinks)})]
        self._first = self.size + len(sinks)

    def look(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        """The figures, without `probe/`."""
        found = {}
        for cache in self.caches:
            nll = stream_nll(module.model, self.stream, cache, chunk=self.chunk)
            mean = float(nll[self._first :].double().mean())
            found[f"ppl_{cache}"] = math.exp(min(mean, 700.0)) if math.isfinite(mean) else math.nan
        return found
