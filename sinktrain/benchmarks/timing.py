"""Clocks and memory meters that work on a CPU and on a GPU alike."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")

_MEASURED = "sinktrain: measured"


def now(device: torch.device) -> float:
    """Seconds on a clock that only goes forward, once all that was asked of `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long `run` takes, with nothing of what came before it still running on `device`."""
    start = now(device)
    run()
    return now(device) - start


def in_turns(turns: Mapping[str, Callable[[], Found]], *, seconds: float, rounds: int) -> dict[str, list[Found]]:
    """Runs each of `turns` once a round (A B C A B C ...), so that a machine that slows down slows them all.

    Args:
        turns: what to run, by name.
        seconds: how long to go on; the round that is under way then is finished.
        rounds: how many rounds to run at least, whatever they take.

    Returns:
        What each turn returned, by name, in the order of the rounds.
    """
    found: dict[str, list[Found]] = {name: [] for name in turns}
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for name, turn in turns.items():
            found[name].append(turn())
        done += 1
    return found


def working_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors made during `run` hold at once, beyond what was held before.

    On a GPU the allocator says so. On a CPU the profiler's record of each allocation does: the peak of the process
    would not, since memory that an earlier run has left is used again unseen. Scratch space that a library takes for
    itself without PyTorch is not counted.

    Args:
        run: what to measure; it is run twice, since what is freed counts only if it was made under the meter.
        device: where its tensors are.
    """
    if device.type == "cuda":
        run()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    only_cpu = [torch.profiler.ProfilerActivity.CPU]
    with _silent(), torch.profiler.profile(activities=only_cpu, profile_memory=True) as profile:
        run()
        with torch.profiler.record_function(_MEASURED):
            run()
    assert profile.profiler is not None
    events: list[Any] = profile.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == _MEASURED)
    # Each event is what was taken, or what was given back, below 0.
    changes: list[tuple[int, int]] = [
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    ]
    return max(accumulate((change for when, change in changes if when >= start), initial=0))


def peak_bytes(device: torch.device) -> int | None:
    """The most memory in use so far: by tensors on the GPU, or by the whole process on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr: some versions of the profiler's C++ part print two lines there whenever it runs."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
