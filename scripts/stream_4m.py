#!/usr/bin/env python3
"""What scripts/stream_4m.sh runs; --help lists the options."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from sinktrain.base.allocator import keep_memory

keep_memory()

import matplotlib as mpl  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel  # noqa: E402

from sinktrain.base.secrets import command_line  # noqa: E402
from sinktrain.data.sources import documents  # noqa: E402
from sinktrain.evaluation.results import environment  # noqa: E402
from sinktrain.streaming import CacheSpec, stream_nll  # noqa: E402

LAYERS, SINK, VOCABULARY = 3, 0, 257  # a byte b is token b + 1
INK, ACCENT = "#80868f", "#d9822b"


def text_as_bytes(source: str, count: int) -> Tensor:
    """The first `count` bytes of a source of text, as tokens (count,)."""
    found = bytearray()
    for document in documents(source):
        found += document.encode()
        if len(found) >= count:
            return torch.tensor(list(found[:count])) + 1
    sys.exit(f"stream_4m: --source {source}: has {len(found):,} bytes, not {count:,}; name a longer one.")


def train(text: Tensor, steps: int, width: int) -> PreTrainedModel:
    """A small model that saw a sink in front of every sample of `width` positions."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=344, num_hidden_layers=LAYERS,
            num_attention_heads=4, max_position_embeddings=width, tie_word_embeddings=True, bos_token_id=SINK,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(0, len(text) - width, (16,), generator=generator).tolist()
        samples = torch.stack([torch.cat((torch.tensor([SINK]), text[s : s + width])) for s in starts])
        logits = model(input_ids=samples[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"training: step {step + 1} of {steps}, loss {float(loss):.3f}", flush=True)
    return model.eval()


def stream(model: PreTrainedModel, text: Tensor, cache: CacheSpec, chunk: int) -> tuple[Tensor, list[float], float]:
    """The NLL of every token of the text after a sink, memory in MB at each hundredth of it, and the seconds."""
    process, done, memory = psutil.Process(), 0, list[float]()

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        while done >= (len(memory) + 1) * len(text) / 100:
            memory.append(process.memory_info().rss / 1e6)
            if len(memory) % 10 == 0:
                print(f"streaming: {done:,} tokens, {memory[-1]:,.0f} MB", flush=True)

    start = time.perf_counter()
    nll = stream_nll(model, torch.cat((torch.tensor([SINK]), text)), cache, chunk=chunk, advance=advance)
    return nll, memory, time.perf_counter() - start


def drift(model: PreTrainedModel, text: Tensor, nll: Tensor, cache: CacheSpec, end: int) -> dict[str, Any]:
    """How far the NLLs up to token `end` are from those of a stream that started 20,000 tokens before it.

    What a token leaves in the cache depends on y tokens before it in each layer, so that two streams over the same text
    are the same, but for rounding, once layers x C tokens have passed.
    """
    size = cache.size or 0
    begin, settled = max(0, end - 20_000), LAYERS * size
    fresh = stream_nll(model, torch.cat((torch.tensor([SINK]), text[begin:end])), cache)[settled:]
    long = nll[begin + settled : end]
    return {
        "token": end,
        "mean_nll": float(long.mean()),
        "mean_nll_fresh": float(fresh.mean()),
        "largest_difference": float((long - fresh).abs().max()),
    }


def draw(record: dict[str, Any], out: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
                         "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "sinktrain"})  # fmt: skip
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6.4, 3.6), sharex=True, height_ratios=(2, 1))
    places = [(i + 0.5) * record["tokens"] / 100 / 1e6 for i in range(100)]
    upper.plot(places, record["nll_by_hundredth"], color=ACCENT, linewidth=1.2, label="one stream")
    fresh = [(row["token"] / 1e6, row["mean_nll_fresh"]) for row in record["drift"]]
    upper.plot(*zip(*fresh, strict=True), "o", color=INK, markersize=4, label="started 20,000 tokens before")
    upper.set(ylabel="mean NLL (nats a byte)", ylim=(0, None))
    upper.legend(frameon=False, loc="lower right")
    lower.plot(places, record["memory_mb"], color=ACCENT, linewidth=1.2)
    lower.set(ylabel="memory (MB)", ylim=(0, None), xlabel="tokens streamed (millions)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    for kind in ("svg", "png"):
        figure.savefig(out / f"stream.{kind}", transparent=True, bbox_inches="tight", dpi=150,
                       metadata={"Date": None} if kind == "svg" else None)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--source", default="stdlib", help="text, as sinktrain prepare --source takes it")
    parser.add_argument("--cache", default="1+255")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--out", type=Path, default=Path("runs/stream_4m"))
    options = parser.parse_args()
    cache = CacheSpec.parse(options.cache, "--cache")
    text = text_as_bytes(options.source, 2 * options.tokens)
    model = train(text[options.tokens :], options.steps, 256)
    text = text[: options.tokens]
    nll, memory, seconds = stream(model, text, cache, options.chunk)
    places = [options.tokens * quarter // 4 for quarter in (1, 2, 3, 4)]
    record = {
        "command": command_line(), "environment": environment(), "tokens": options.tokens, "cache": str(cache),
        "seconds": round(seconds, 1), "tokens_per_second": round(options.tokens / seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_mb": [round(value, 1) for value in memory],
        "memory_growth": max(memory[1:]) / memory[0] - 1,
        "nll_by_hundredth": [round(float(part.mean()), 4) for part in nll.tensor_split(100)],
        "drift": [drift(model, text, nll, cache, place) for place in places],
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "stream.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.out)
    print(f"{options.tokens:,} tokens in {seconds:.0f} s ({record['tokens_per_second']:,} a second)")
    print(f"memory from 1% of the stream, where the cache is long full, to its end: {record['memory_growth']:+.1%}")
    for row in record["drift"]:
        print(
            f"token {row['token']:>9,}: mean NLL {row['mean_nll']:.5f}, of a fresh stream {row['mean_nll_fresh']:.5f}; "
            f"largest difference {row['largest_difference']:.1e}"
        )
    worst = max(row["largest_difference"] for row in record["drift"])
    return int(record["memory_growth"] > 0.05 or worst > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
