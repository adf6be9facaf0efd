"""Batches of a text that is tokenized while it is read, resumed exactly."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sinktrain.data.packing import with_sinks
from sinktrain.data.samples import Share
from sinktrain.data.streamed_text import StreamedText


class StreamedBatches(IterableDataset[dict[str, Any]]):
    """Batches of packing `chunk` from a stream; every rank reads all of it and keeps its own samples.

    So that a run with any number of ranks sees the same samples: where a sample begins depends on all text before it.

    A batch has, beside its tensors, `state`: where to read on to get what comes after it, as plain values. That is the
    place before the documents that its last sample came from, the tokens left over from earlier ones, and the number
    of the first sample that these make.

    Args:
        text: the tokens of the stream.
        text_length: tokens of a sample.
        sinks: the k sink tokens.
        share: which samples this process takes.
        state: from a batch, of samples that the share does not begin before; None for the beginning.
    """

    def __init__(
        self, text: StreamedText, text_length: int, sinks: Sequence[int], share: Share, state: dict[str, Any] | None
    ) -> None:
        self._text, self._length, self._sinks = text, text_length, np.array(sinks, dtype=np.int64)
        self._share, self.state = share, state or {"place": None, "left": [], "samples": 0}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        mine: list[NDArray[np.int64]] = []
        following = self._share.first
        for state, rows in self._rows():
            for s in range(following, state["samples"] + len(rows), self._share.world_size):
                mine.append(rows[s - state["samples"]])
                following = s + self._share.world_size
                if len(mine) == self._share.batch_size:
                    yield self._made(np.stack(mine), s, state)
                    mine = []

    def _rows(self) -> Iterator[tuple[dict[str, Any], NDArray[np.int64]]]:
        """The samples (n, text_length) that the next documents complete, and the state before these documents."""
        state = self.state
        for tokens, place in self._text.read(state["place"]):
            tokens = np.concatenate([np.array(state["left"], dtype=np.int64), tokens])
            n = len(tokens) // self._length
            yield state, tokens[: n * self._length].reshape(n, self._length)
            state = {"place": place, "left": tokens[n * self._length :].tolist(), "samples": state["samples"] + n}

    def _made(self, text: NDArray[np.int64], last: int, state: dict[str, Any]) -> dict[str, Any]:
        columns = with_sinks(text, self._sinks)
        step = self._share.world_size
        columns["samples"] = np.arange(last - (len(text) - 1) * step, last + 1, step)
        return {**{name: torch.from_numpy(values) for name, values in columns.items()}, "state": state}


def begin_worker(worker: int) -> None:
    """Makes a loader's process outlive the signals that its rank saves for, which may be sent to all of its group.

    And a forked process has no copy of the threads with which `tokenizers` works, and would wait for them for ever.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class ResumableStream:
    """The batches of a stream without their states, which are kept for the next checkpoint.

    A loader is ahead of the optimizer. So the state to save is that of the samples used, not of the last one fetched.

    Args:
        batches: the stream.
        used: says how many samples the optimizer has used, over all ranks.
        workers: 0, or 1 to read in a process beside this one.
    """

    def __init__(self, batches: StreamedBatches, used: Callable[[], int], workers: int) -> None:
        self._loader: DataLoader[dict[str, Any]] = DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),  # else it would draw from the one that dropout draws from
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=begin_worker,
            pin_memory=torch.cuda.is_available(),
        )
        self._used, self._states = used, deque([batches.state])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._loader:
            state = batch.pop("state")
            if state["samples"] > self._states[-1]["samples"]:
                self._states.append(state)
            self._forget(self._used())
            yield batch

    def state(self, used: int) -> dict[str, Any]:
        """Where to read on after `used` samples."""
        self._forget(used)
        return self._states[0]

    def _forget(self, used: int) -> None:
        while len(self._states) > 1 and self._states[1]["samples"] <= used:
            self._states.popleft()
