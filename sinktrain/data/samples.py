"""Batches of training samples, in an order that can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sinktrain.data.mixture import Mixture
from sinktrain.data.packing import Rows

_AHEAD = 1024  # samples whose places are looked up at once, for speed alone


class Pick(NamedTuple):
    """The samples of a batch, each (B,) int64: number in the endless order, source, number in the source."""

    samples: NDArray[np.int64]
    sources: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """What one process takes of an endless order of samples: with several, every `world_size`-th.

    So any number of processes takes the same samples in the same steps.

    Args:
        batch_size: B, samples of a batch.
        start: the first sample to take, over all processes: how many were used before.
        rank: of this process.
        world_size: how many processes there are.

    Raises:
        ValueError: a number is out of range.
    """

    batch_size: int
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.start < 0 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"{self}: out of range")

    @property
    def first(self) -> int:
        """The first of this process: the least s >= start whose remainder by `world_size` is the rank."""
        return self.start + (self.rank - self.start) % self.world_size


class OrderedBatches(Sampler[Pick]):
    """The endless order of batches, known from a few integers, so that a run can be resumed from its step alone.

    It has no length: one epoch of Lightning is the whole run, and `max_steps` ends it.

    Args:
        order: which sample is the s-th.
        share: which of them this process takes.
    """

    def __init__(self, order: Mixture, share: Share) -> None:
        self._order, self._share = order, share

    def __iter__(self) -> Iterator[Pick]:
        size = self._share.batch_size
        many = max(1, _AHEAD // size) * size
        for turn in count():
            s = self._share.first + self._share.world_size * np.arange(turn * many, (turn + 1) * many, dtype=np.int64)
            sources, rows = self._order.locate(s)
            for i in range(0, many, size):
                batch = slice(i, i + size)
                yield Pick(s[batch], sources[batch], rows[batch])


class Batches(Dataset[dict[str, Tensor]]):
    """Batches of one or several sources; an index is a `Pick`, made by `OrderedBatches`.

    Args:
        sources: the samples of each source, all of one length.
    """

    def __init__(self, sources: Sequence[Rows]) -> None:
        self._sources = list(sources)

    def __getitem__(self, pick: Pick) -> dict[str, Tensor]:
        """The batch: `input_ids`, `labels` and, with packing `document`, `position_ids` (B, T), `samples` (B,); int64.

        Raises:
            ValueError: the batch is empty.
        """
        if not len(pick.samples):
            raise ValueError("an empty batch: a step on nothing would pass for training")
        given = np.unique(pick.sources)
        if len(given) == 1:
            columns = self._sources[given[0]].read(pick.rows)
        else:
            columns = {}
            for source in given:
                mine = pick.sources == source
                for name, values in self._sources[source].read(pick.rows[mine]).items():
                    columns.setdefault(name, np.empty((len(mine), values.shape[1]), dtype=np.int64))[mine] = values
        columns["samples"] = pick.samples
        return {name: torch.from_numpy(values) for name, values in columns.items()}


def in_order(sizes: Sequence[int], share: Share, most: int | None) -> list[Pick]:
    """Batches for validation: the samples in their order, equally many for every process.

    Several sources are dealt in proportion to their sizes, so that a part of the whole is a part of each.

    Args:
        sizes: how many samples each source has.
        share: which of them this process takes; its last batch may be smaller.
        most: so many samples over all processes at most; None for all.

    Returns:
        The batches; none when there are fewer samples than processes.
    """
    sources = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes])
    order = np.argsort((rows + 0.5) / np.array(sizes)[sources], kind="stable")
    total = len(rows) if most is None else min(most, len(rows))
    # Every rank gets equally many: with sharded weights, a rank that has one batch more would wait for ever.
    s = np.arange(share.rank, total // share.world_size * share.world_size, share.world_size)
    picks = (s[i : i + share.batch_size] for i in range(0, len(s), share.batch_size))
    return [Pick(mine, sources[order[mine]], rows[order[mine]]) for mine in picks]
