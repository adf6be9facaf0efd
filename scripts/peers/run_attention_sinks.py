"""Runs attention_sinks token by token over a text, in its own environment; started by compare.py.

    .venv-peers/bin/python scripts/peers/run_attention_sinks.py JOB.json RESULT.json

Nothing of sinktrain is imported here. What attention_sinks 0.4.0 does, as its source says: `AttentionSinkKVCache` cuts
what a forward leaves behind to the first `attention_sink_size` and the last `attention_sink_window_size` positions. So
the token just run counts among the y recent ones, and the next query sees x + y cached keys and itself: our eviction
rule. Keys are cached without rotation, all of them are rotated by their index in the cache at each step, and
the query by the number of keys before it, at most x + y: our `cache` rule.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 512  # tokens run at once while the cache fills: exact, since nothing is evicted before x + y tokens


def load(job: dict[str, Any]) -> Any:
    """The model with the cache x+y built in, on the job's device."""
    from attention_sinks import AutoModelForCausalLM  # type: ignore[import-not-found]

    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        torch_dtype=getattr(torch, job["dtype"]),
        attention_sink_size=job["sinks"],
        attention_sink_window_size=job["recent"],
    )
    return model.to(job["device"]).eval()


def synchronize(device: str) -> None:
    """Waits for a GPU to finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def run(job: dict[str, Any]) -> dict[str, Any]:
    """Fills the cache, then times `steps` tokens; saves the NLL of each token after the first in job["nll"]."""
    torch.set_num_threads(job["threads"])
    model = load(job)
    tokens = torch.from_numpy(np.load(job["tokens"])).to(job["device"])
    size, steps = job["sinks"] + job["recent"], job["steps"]
    cache, parts = None, []

    def forward(begin: int, end: int) -> None:
        nonlocal cache
        output = model(input_ids=tokens[None, begin:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(nll_of(output.logits[0], tokens[begin + 1 : end + 1]))

    for begin in range(0, size, PIECE):
        forward(begin, min(begin + PIECE, size))
    first = size + job["warmup"]
    for i in range(size, first):
        forward(i, i + 1)
    synchronize(job["device"])
    start = time.perf_counter()
    for i in range(first, first + steps):
        forward(i, i + 1)
    synchronize(job["device"])
    seconds = time.perf_counter() - start
    np.save(job["nll"], torch.cat(parts).cpu().numpy())
    names = ("attention_sinks", "transformers", "torch", "numpy")
    return {"tokens": steps, "seconds": seconds, "versions": {name: version(name) for name in names}}


def nll_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(L,) the NLL of targets (L,) under logits (L, V), in float32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
