#!/usr/bin/env python3
"""A cheap look at what streaming costs: `look.py --model MODEL --text data/austen.txt --skip 400000 --sizes 256 1024`

Streams a text through 1+(C-1) and compares with windows of C - 32 to C + 31 tokens before each predicted one: 64
predictions a window where `recompute` has one. Not that reference, and no verdict, but enough to see where one is worth
its hours; to be had from other tokens than these, then.
"""

from __future__ import annotations

import argparse
from math import expm1

import torch
from torch import Tensor

from sinktrain.base.terminal import say
from sinktrain.evaluation.statistics.mean import estimate
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.evaluation.texts import load_text
from sinktrain.streaming import CacheSpec, stream_nll
from sinktrain.streaming.nll import token_nll

PREDICTED = 64


def main() -> None:
    """Prints a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `sinktrain evaluate --model.name` takes it")
    parser.add_argument("--text", required=True)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    options = parser.parse_args()
    subject = load_subject(ModelOptions(options.model, "bfloat16", "cpu"))
    text = load_text(options.text, subject.tokenizer, options.tokens, options.skip).tokens
    say("| C | tokens | 1+(C-1) against windows of about C | standard deviation, nats |\n|---|---|---|---|")
    for size in options.sizes:
        difference = differences(subject, text.long(), size).numpy()
        found = estimate(difference)
        change, low, high = (100 * expm1(value) for value in (found.mean, found.low, found.high))
        say(f"| {size} | {len(difference)} | {change:+.2f}% ({low:+.2f} to {high:+.2f}) | {difference.std():.3f} |")


@torch.no_grad()
def differences(subject: Subject, text: Tensor, size: int) -> Tensor:
    """NLL of the stream minus that of the windows, by token."""
    sinks = torch.tensor(subject.sink_ids, dtype=torch.long)
    streamed = stream_nll(subject.model, torch.cat((sinks, text)), CacheSpec(1, size - 1)).double()
    streamed = streamed[max(0, len(sinks) - 1) :]
    first = max(0, 1 - len(sinks))  # without a sink nothing predicts the first token
    found = []
    for begin in range(size + PREDICTED, len(text) - PREDICTED, PREDICTED):
        end = begin + PREDICTED
        window = torch.cat((sinks, text[begin - size + PREDICTED // 2 : end]))[None]
        logits = subject.model(input_ids=window[:, :-1], use_cache=False, logits_to_keep=PREDICTED).logits
        afresh = token_nll(logits, window[:, -PREDICTED:])[0].double()
        found.append(streamed[begin - first : end - first] - afresh)
    return torch.cat(found)


if __name__ == "__main__":
    main()
