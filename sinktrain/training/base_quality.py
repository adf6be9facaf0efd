"""What tuning did to a pretrained model: its perplexity before and after, dense and streaming, on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.terminal import say
from sinktrain.sinks.outlet import without_outlets
from sinktrain.streaming import CacheSpec, stream_nll
from sinktrain.training.beside import beside_training
from sinktrain.training.held_out import held_out, sequences


class BaseQuality(L.Callback):
    """Measures a pretrained model before its first step, as it was, and after the last one, with its sink.

    - `before/TEXT/dense`, `after/TEXT/dense`: perplexity with the whole text before in view.
    - `before/TEXT/1+255`, `after/TEXT/1+255` (with k sinks, of C = 256, k+(C-k)): streaming, with as many first
      positions kept as there are sinks; before, these were ordinary tokens of the text, or the model's BOS.

    All four are over the same tokens: those that are predicted with a full cache. TEXT is the name of the folder. They
    are logged, and printed at the end. A model from `model.config` has no before, and is left out, as is one that
    cannot stream.

    Args:
        tokens: of each text; fewer where a text is shorter, or the model was trained for fewer positions. 0 measures
            nothing.
        size: C, positions in the cache; at most half of the tokens.
        texts: further folders made by `sinktrain prepare`, of other kinds of text, whose held-out part is measured.
    """

    def __init__(self, tokens: int = 2048, size: int = 256, texts: list[str] | None = None) -> None:
        at_least("base_quality.tokens", tokens, 0)
        at_least("base_quality.size", size, 2)
        self.tokens, self.size, self.texts = tokens, size, list(texts or [])
        self.before: dict[str, float] = {}
        """What was measured before the first step, by text and cache."""
        self.after: dict[str, float] = {}
        self._streams: dict[str, Tensor] = {}
        self._caches = CacheSpec.parse("dense"), CacheSpec(1, size - 1)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Chooses the texts."""
        if stage != "fit" or pl_module.name is None or self.tokens == 0:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        kept, longest = max(1, len(pl_module.sink_ids)), pl_module.trained_length
        texts = {
            folder: held_out(trainer, pl_module, folder, "base_quality.texts")[0]
            for folder in [*getattr(data, "folders", ()), *self.texts]
        }
        if not texts:
            return
        length = min(self.tokens, longest - kept if longest else self.tokens, *map(len, texts.values()))
        self._caches = CacheSpec.parse("dense"), CacheSpec(kept, max(1, min(self.size, length // 2) - kept))
        if length < 4 * (kept + 1):
            if trainer.is_global_zero:
                say(f"base_quality: {length} tokens of held-out text are too few to measure the model before and after")
            return
        names = [_name(folder) for folder in texts]
        for name, (folder, text) in zip(names, texts.items(), strict=True):
            stream = sequences([text], 1, length, "base_quality.tokens")[0]
            self._streams[name if names.count(name) == 1 else folder] = stream

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measures the model as it was; a run that goes on has it from its checkpoint."""
        if trainer.global_step == 0 and self._streams:
            try:
                with without_outlets(pl_module.model):
                    self.before = self._measure(trainer, pl_module, pl_module.front, pl_module.known)
            except UserError as error:  # a model that cannot stream can be trained all the same
                self._streams = {}
                if trainer.is_global_zero:
                    say(f"base_quality: the model is not measured before and after: {error}")
                return
            self._log(trainer, "before", self.before)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measures the model with its sink, and says what has become of it."""
        if self._streams and self.before:
            self.after = self._measure(trainer, pl_module, pl_module.sink_ids, None)
            self._log(trainer, "after", self.after)
            if trainer.is_global_zero:
                self._tell()

    def _measure(self, trainer: L.Trainer, module: Any, front: list[int], known: int | None) -> dict[str, float]:
        """PPL by text and cache, of a model that is given `front` first, over the tokens with a full cache."""
        found = {}
        skipped = int(self._caches[1].size or 0) + self._caches[1].sinks
        with beside_training(trainer, module), _vocabulary(module.model, known):
            for name, text in self._streams.items():
                stream = torch.cat((torch.tensor(front, dtype=torch.int64), text))
                for cache in self._caches:
                    run = partial(stream_nll, module.model, stream, cache)
                    nll = module.looked_at(run)[skipped - len(text) :]
                    mean = float(nll.double().mean())
                    found[f"{name}/{cache}"] = math.exp(min(mean, 700.0)) if math.isfinite(mean) else math.nan
        return found

    def _log(self, trainer: L.Trainer, when: str, figures: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({f"{when}/{key}": value for key, value in figures.items()}, step=trainer.global_step)
        trainer.callback_metrics.update({f"{when}/{k}": torch.tensor(v) for k, v in figures.items()})

    def _tell(self) -> None:
        for key, after in self.after.items():
            text, _, cache = key.rpartition("/")
            before = self.before[key]
            say(f"PPL on {text}, {cache}: {before:.3f} before, {after:.3f} after ({100 * (after / before - 1):+.2f}%)")

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.before = dict(state_dict["before"])


@contextmanager
def _vocabulary(model: Any, known: int | None) -> Iterator[None]:
    """Inside the block `model` chooses among the first `known` tokens: those that it had before it got its sink."""

    def cut(module: Any, args: Any, output: Any) -> None:
        output.logits = output.logits[..., :known]

    hook = model.register_forward_hook(cut)
    try:
        yield
    finally:
        hook.remove()


def _name(folder: str) -> str:
    return folder.rstrip("/").rpartition("/")[2]
