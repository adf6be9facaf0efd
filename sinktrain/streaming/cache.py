"""The streaming cache of StreamingLLM (arXiv 2309.17453, section 3.2) as a `transformers.Cache`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.streaming.layer import SinkLayer
from sinktrain.streaming.positions import Positions
from sinktrain.streaming.spec import CacheSpec, PositionRule
from sinktrain.streaming.step import Step


class SinkCache(Cache):
    """A cache that keeps the first x tokens and the y most recent ones, for `generate` and plain forward calls.

        cache = SinkCache.for_model(model, "1+1023")
        model.generate(**inputs, past_key_values=cache, max_new_tokens=100_000)

    Its memory is allocated once and does not grow, and a decoding step costs the same at token 4,000,000 as at token
    4,000. Prompts of any length, batches with padding, several turns and beam search work; what would have to take
    tokens back (assisted generation) is refused.

    Args:
        spec: what is kept.
        positions: how the model encodes positions.
        rule: which distance the sinks are seen at.
        origin: the position id of the first token. Angles are exact at any: tests start at 33,554,432.
    """

    def __init__(self, spec: CacheSpec, positions: Positions, *, rule: PositionRule = "cache", origin: int = 0) -> None:
        super().__init__(layers=[SinkLayer(spec) for _ in positions.rotary])
        self.spec, self.positions, self.rule, self.origin = spec, positions, rule, origin
        self.seen: Tensor | None = None  # (B,) tokens of each row so far, without padding
        self.columns: Tensor | None = None  # () tokens so far, with padding: what transformers calls the length
        self.filled = False
        self.step: Step | None = None
        self.masks: dict[tuple[object, ...], Tensor] = {}

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        spec: CacheSpec | str,
        *,
        rule: PositionRule = "cache",
        longest: int | None = None,
    ) -> SinkCache:
        """A new cache for `model`, which is made ready to stream (see `attach`).

        Args:
            model: a causal language model.
            spec: the cache, such as `"1+1023"`, or `"dense"`.
            rule: `cache` counts the distance to a sink inside the cache, `original` in the text.
            longest: positions seen at once, for scalings that depend on the length of the text; by default C + 1
                under the `cache` rule, else the model's full length.

        Raises:
            UserError: the model has no streaming form, or `spec` is not a cache.

        Warns:
            UserWarning: the cache holds more positions than the model was trained for.
        """
        from sinktrain.streaming.attach import attach

        spec = CacheSpec.parse(spec) if isinstance(spec, str) else spec
        trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if spec.size is not None and isinstance(trained, int) and spec.size > trained:
            warnings.warn(
                f"cache {spec} holds {spec.size} positions, the model was trained for {trained}; use a smaller one.",
                stacklevel=2,
            )
        positions = Positions.probe(model, longest or spec.longest(rule))
        attach(model)
        return cls(spec, positions, rule=rule)

    def begin(self, batch: int, length: int, mask: Tensor | None, device: torch.device) -> Step:
        """Prepares the forward of `length` new tokens.

        Args:
            batch: rows.
            length: L, new tokens a row.
            mask: (B, >= L), 0 where a token is padding; its last L columns are those of the new tokens.
            device: of the new tokens.

        Raises:
            UserError: another batch size than before, a mask of another form, or a forward that failed halfway.
        """
        if self.step is not None:
            raise UserError("past_key_values: a forward with this SinkCache failed halfway; reset() it and start anew.")
        if mask is not None and (mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length):
            raise UserError(
                f"attention_mask {tuple(mask.shape)}: a stream takes a mask (batch, tokens) of 0 and 1; "
                "leave it out, or give the one of the tokenizer."
            )
        if self.seen is None or self.columns is None:
            with torch.inference_mode(False):  # so that the stream can go on outside of inference mode
                self.seen = torch.zeros(batch, dtype=torch.long, device=device)
                self.columns = torch.zeros((), dtype=torch.long, device=device)
        if len(self.seen) != batch:
            raise UserError(
                f"past_key_values: this SinkCache holds {len(self.seen)} streams, not {batch}; use another."
            )
        self.step = self._one(mask) if length == 1 else self._many(batch, length, mask)
        return self.step

    def _one(self, mask: Tensor | None) -> Step:
        """One token a row: once the cache is full nothing waits for the device, so that kernels queue up.

        A compiled step never waits (but for a dense cache, which grows) and never learns that the cache is full.
        """
        assert self.seen is not None
        if not self.filled and self.spec.size is not None and not torch.compiler.is_compiling():
            self.filled = int(self.seen.min()) >= self.spec.size
        valid = None if mask is None else mask[:, -1:].bool()
        # A padding token takes the next token's place, which overwrites it: what stood there has left the cache.
        return Step(self.spec, self.rule, self.origin, self.seen[:, None].clone(), self.seen, None, valid, self.filled)

    def _many(self, batch: int, length: int, mask: Tensor | None) -> Step:
        assert self.seen is not None
        valid = None if mask is None else mask[:, -length:].bool()
        if valid is not None and bool(valid.all()):
            valid = None
        first, last = int(self.seen.min()), int(self.seen.max())
        if valid is None:
            positions = self.seen[:, None] + torch.arange(length, device=self.seen.device)
        else:
            positions = (self.seen[:, None] + valid.long().cumsum(1) - 1).clamp(min=0)
        if first == last:  # rows in step: one set of angles serves all
            positions = positions[:1] if valid is None else positions
        start = first if valid is None and first == last else None
        filled = self.spec.size is not None and first >= self.spec.size
        return Step(self.spec, self.rule, self.origin, positions, self.seen, start, valid, filled)

    def end(self) -> None:
        """Counts the tokens of the forward that `begin` prepared."""
        assert self.seen is not None and self.columns is not None and self.step is not None
        length = self.step.positions.shape[1]
        self.seen.add_(length if self.step.valid is None else self.step.valid.sum(dim=1))
        self.columns.add_(length)
        self.step = None

    def _rows(self) -> list[SinkLayer]:
        return [layer for layer in self.layers if isinstance(layer, SinkLayer)]

    # What transformers asks of a cache.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hands the new keys and values on: the attention function of the stream stores them.

        Raises:
            UserError: the forward does not know that it carries a `SinkCache`.
        """
        if self.step is None:
            raise UserError(
                "past_key_values: this model was not made ready for a SinkCache; make the cache with "
                "SinkCache.for_model(model, ...) and call that model itself."
            )
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far, padding included, evicted ones too; a 0-dimensional tensor as with `StaticCache`."""
        return 0 if self.columns is None else self.columns  # type: ignore[return-value]

    def reset(self) -> None:
        """Starts a new stream with nothing in the cache."""
        for layer in self._rows():
            layer.reset()
        self.seen = self.columns = self.step = None
        self.masks.clear()
        self.filled = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: each beam goes on from another one's stream."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the streams `indices`."""
        for layer in self._rows():
            layer.select(indices)
        if self.seen is not None:
            self.seen = self.seen.index_select(0, indices.to(self.seen.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each stream."""
        if self.seen is not None:
            self.batch_select_indices(torch.arange(len(self.seen), device=self.seen.device).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what has been evicted cannot come back.

        Raises:
            UserError: always.
        """
        raise UserError(
            "past_key_values: a SinkCache cannot take tokens back, since what it evicted is gone; "
            "use greedy, sampling or beam search instead of assisted generation."
        )
