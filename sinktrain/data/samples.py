"""Prepared tokens to samples, in an order that can be taken up anywhere, with the sink in front."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sinktrain.data.prepared import Tokens

IGNORED = -100  # the label that every loss of torch and transformers leaves out


class ChunkedSamples(Dataset[Tensor]):
    """Packing `chunk`: the text is one row of tokens, cut into samples of equal length; the remainder is dropped.

    Args:
        tokens: (tokens,) the text.
        sequence_length: positions of a training sample, the sinks among them.
        sinks: how many of these positions the sinks will take.

    Raises:
        ValueError: no position is left for text.
    """

    def __init__(self, tokens: NDArray[Tokens], sequence_length: int, sinks: int) -> None:
        self.text_length = sequence_length - sinks
        if self.text_length < 1:
            raise ValueError(f"{sinks} sinks leave no room for text in {sequence_length} positions")
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens) // self.text_length

    def __getitem__(self, index: int) -> Tensor:
        """Sample `index`: (text_length,) int64, without sinks."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start = index * self.text_length
        return torch.from_numpy(self._tokens[start : start + self.text_length].astype(np.int64))


class OrderedSampler(Sampler[int]):
    """An endless order of samples that is known from two integers, so that a run can be resumed from its step alone.

    The s-th sample of the run, counted over all ranks, is a pure function of (seed, s): place s % N of the
    permutation that (seed, s // N) draws. A rank takes every `world_size`-th, so any number of ranks sees the same
    samples in the same order. It has no length: one epoch of Lightning is the whole run, and `max_steps` ends it.

    Args:
        samples: N, how many samples there are.
        seed: of the permutations.
        start: s of the first sample to take, over all ranks: how many were used before.
        rank: of this process.
        world_size: how many processes there are.

    Raises:
        ValueError: there are no samples, or a number is out of range.
    """

    def __init__(self, samples: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if samples < 1 or seed < 0 or start < 0 or not 0 <= rank < world_size:
            raise ValueError(f"{samples} samples, seed {seed}, start {start}, rank {rank} of {world_size}")
        self.samples, self.seed, self.start, self.rank, self.world_size = samples, seed, start, rank, world_size

    def __iter__(self) -> Iterator[int]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        first = self.start + (self.rank - self.start) % self.world_size  # the first s >= start that is this rank's
        for s in count(first, self.world_size):
            if s // self.samples != epoch:
                epoch = s // self.samples
                order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
            yield int(order[s % self.samples])


def collate(samples: list[Tensor], sink_ids: list[int]) -> dict[str, Tensor]:
    """Puts the sinks in front of every sample of a batch.

    Args:
        samples: B text samples, each (n,) int64.
        sink_ids: the k sink tokens; none for a model without a sink.

    Returns:
        `input_ids` (B, k + n), and `labels` of the same shape as transformers wants them: labels[t] is the token AT t
        (the loss shifts them), and -100 at the sinks, since no position predicts a sink.

    Raises:
        ValueError: the batch is empty.
    """
    if not samples or samples[0].numel() == 0:
        raise ValueError("an empty batch: a step on nothing would pass for training")
    text = torch.stack(samples)
    sinks = torch.tensor(sink_ids, dtype=torch.int64).expand(len(samples), -1)
    return {
        "input_ids": torch.cat([sinks, text], dim=1),
        "labels": torch.cat([torch.full_like(sinks, IGNORED), text], dim=1),
    }
