"""One layer's share of a streaming cache: a ring of rows, allocated once and written in place.

Rows 0 ... x-1 hold the sinks, rows x ... x+y a ring of the y + 1 most recent tokens (the query itself is one of them).
Position p stands in row p if p < x, else in row x + (p - x) mod (y + 1), which the token that has just left held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from sinktrain.base.errors import UserError
from sinktrain.streaming.spec import CacheSpec
from sinktrain.streaming.step import Step

FIRST_CAPACITY = 1024
"""Rows of a `dense` cache at first; it doubles when it is full."""


class SinkLayer(CacheLayerMixin):
    """The rows of one layer.

    Keys are rotated once, when they come, at their position in the stream. Sinks are kept a second time as they were
    made (`pristine`), since under the `cache` rule their rows are rewritten for each query that has left them behind.

    A layer with a sliding window of W <= y tokens of its own never sees a sink beyond it: it keeps W rows, no sinks.
    """

    is_sliding = False
    is_compileable = False  # generate would build T x T masks for it; compile the model yourself (README)
    is_croppable = False

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = spec
        self.sinks, self.recent = spec.sinks, spec.recent
        self.window: int | None = None
        self.pristine: Tensor | None = None

    def prepare(self, key: Tensor, value: Tensor, window: int | None, needed: int) -> None:
        """Allocates the rows when the first tokens come; makes a dense cache long enough for `needed` tokens."""
        if not self.is_initialized:
            if window is not None and (self.recent is None or window <= self.recent):
                self.sinks, self.recent = 0, window - 1
            elif window is not None:
                self.window = window
            self.lazy_initialization(key, value)
        if self.recent is None and needed > self.rows:
            more = max(needed, 2 * self.rows) - self.rows
            assert self.keys is not None and self.values is not None
            with torch.inference_mode(False):
                self.keys = torch.cat((self.keys, key.new_zeros(*key.shape[:2], more, key.shape[3])), dim=2)
                self.values = torch.cat((self.values, value.new_zeros(*value.shape[:2], more, value.shape[3])), dim=2)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates for the batch, heads, widths, dtype and device of these (B, H_kv, L, D)."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size = key_states.shape[0]
        rows = FIRST_CAPACITY if self.recent is None else self.sinks + self.recent + 1
        with torch.inference_mode(False):  # so that the stream can go on outside of inference mode
            self.keys = key_states.new_zeros(*key_states.shape[:2], rows, key_states.shape[3])
            self.values = value_states.new_zeros(*value_states.shape[:2], rows, value_states.shape[3])
            # One row more, where the keys that are no sinks go when a step cannot know on the host which they are.
            self.pristine = key_states.new_zeros(*key_states.shape[:2], self.sinks + 1, key_states.shape[3])
        self.is_initialized = True

    @property
    def rows(self) -> int:
        """How many there are: x + y + 1."""
        assert self.keys is not None
        return self.keys.shape[2]

    @property
    def ring(self) -> int:
        """How many of them are the ring's."""
        return self.rows - self.sinks

    def row_of(self, positions: Tensor) -> Tensor:
        """The row of each of `positions`."""
        x = self.sinks
        return torch.where(positions < x, positions, x + (positions - x) % self.ring)

    def write_one(self, raw: Tensor, key: Tensor, value: Tensor, step: Step) -> None:
        """Puts one token a batch row (B, H_kv, 1, D) where the step says: raw key, rotated key, value."""
        assert self.keys is not None and self.values is not None and self.pristine is not None
        shape = (self.sinks, self.ring)
        if shape not in step.rows:  # the same for all layers of that shape
            step.rows[shape] = self.row_of(step.positions)
        _put(self.keys, step.rows[shape], key)
        _put(self.values, step.rows[shape], value)
        if self.sinks and not step.filled:
            _put(self.pristine, step.positions.clamp(max=self.sinks), raw)

    def write_many(self, raw: Tensor, key: Tensor, value: Tensor, start: int) -> None:
        """Puts the tokens start ... start+L-1 of all batch rows: those that are sinks, and the last y + 1."""
        assert self.keys is not None and self.values is not None and self.pristine is not None
        end = start + key.shape[2]
        sinks = torch.arange(start, max(start, min(self.sinks, end)), device=key.device)
        last = torch.arange(max(self.sinks, start, end - self.ring), max(self.sinks, end), device=key.device)
        kept = torch.cat((sinks, last))
        rows = self.row_of(kept)
        self.keys.index_copy_(2, rows, key.index_select(2, kept - start))
        self.values.index_copy_(2, rows, value.index_select(2, kept - start))
        if len(sinks):
            self.pristine.index_copy_(2, sinks, raw.index_select(2, sinks - start))

    # What transformers asks of a layer.

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The cache itself answers for its layers.

        Raises:
            UserError: always.
        """
        raise UserError("SinkLayer: stores nothing by itself; use its SinkCache.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of no use to a stream, which needs no mask from transformers."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """The cache counts the tokens, for all layers."""
        raise UserError("SinkLayer: has no length of its own; ask its SinkCache.")

    def get_max_length(self) -> int:
        """-1: a stream has no longest length."""
        return -1

    def reset(self) -> None:
        """Forgets everything, and gives the memory back."""
        self.keys = self.values = self.pristine = None
        self.sinks, self.recent, self.window = self.spec.sinks, self.spec.recent, None
        self.is_initialized = False

    def select(self, rows: Tensor) -> None:
        """Keeps the batch rows `rows`, in that order and as often as they stand there."""
        if not self.is_initialized:
            return
        for name in ("keys", "values", "pristine"):
            old = getattr(self, name)
            new = old.index_select(0, rows.to(old.device))
            if new.shape == old.shape:
                old.copy_(new)  # the memory stays where it is
            else:
                setattr(self, name, new)
        self.batch_size = len(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: each beam goes on from another one's stream."""
        self.select(beam_idx)


def _put(store: Tensor, rows: Tensor, new: Tensor) -> None:
    """Writes `new` (B, H, 1, D) into row `rows` (B, 1) of each batch row of `store` (B, H, N, D), in place."""
    if store.shape[0] == 1:
        store.index_copy_(2, rows[0], new)
    else:
        store.scatter_(2, rows[:, None, :, None].expand_as(new), new)
