"""What every contestant in training reports, measured in the same way. Needs torch alone."""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "transformers", "accelerate", "litgpt", "sinktrain")


class StepClock:
    """Notes the end of every optimizer step, without making a GPU wait.

    Args:
        optimizer: torch's own, not a wrapper around it.
        device: where it steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._marks: list[Any] = []
        optimizer.register_step_post_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From the end of each step to the end of the next: n - 1 values for n steps."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._cuda:
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]


def read_job() -> dict[str, Any]:
    """The job that the command line names; torch then uses its number of threads."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    return job


def write_result(job: dict[str, Any], clock: StepClock, loss: float, parameters: int) -> None:
    """Writes what the contestant showed into job["result"].

    Args:
        job: see `read_job`.
        clock: of its optimizer.
        loss: of the first step, before any weight has changed.
        parameters: how many it trained.
    """
    found: dict[str, Any] = {"seconds": clock.seconds()[job["warmup"] - 1 :], "loss": loss, "parameters": parameters}
    found["memory"] = peak_memory(job["device"])
    found["versions"] = {}
    for name in PACKAGES:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    Path(job["result"]).write_text(json.dumps(found))


def peak_memory(device: str) -> int:
    """The most bytes in use so far: of the GPU, or of this process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
