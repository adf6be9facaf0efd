#!/usr/bin/env python3
"""A text far longer than llama.cpp's context, with the sink kept and without, and what our evaluator says of each.

    python recipes/smollm2/llama_cpp.py --model runs/smollm2/model --gguf runs/smollm2/model.gguf \\
        --out runs/smollm2/llama_cpp.json

llama.cpp shifts its context when it is full: it drops the older half and keeps the first `n_keep` positions, of which
BOS is always one. To see a text without it, the same file says that nothing is put in front (`add_bos_token`), and the
sink is the first token of the prompt, which goes with the rest. NLLs are those of the exported model itself, streamed
with its sink kept, in float32: a text that a model lost its way in is one that it would not have written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from math import exp
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoTokenizer

from sinktrain.base.models import load_model
from sinktrain.base.terminal import say
from sinktrain.streaming import CacheSpec, stream_nll

SERVER = Path(__file__).parents[2] / "tests" / "export" / "llama_cpp_server.py"


def main() -> None:
    """Generates both texts, measures them, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="that `sinktrain export` wrote")
    parser.add_argument("--gguf", type=Path, required=True, help="that `sinktrain gguf` wrote of it")
    parser.add_argument("--prompt", default="It is a truth universally acknowledged, that")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    prompt = AutoTokenizer.from_pretrained(options.model)(options.prompt).input_ids
    bare = options.out.with_suffix(".without-bos.gguf")
    without_bos(options.gguf, bare)
    texts = {"kept": generate(options.gguf, prompt, options), "not kept": generate(bare, prompt, options)}
    bare.unlink()
    found = {name: [nll(options, prompt + made) for made in each] for name, each in texts.items()}
    options.out.write_text(json.dumps({"nll": found, "texts": texts}, indent=1) + "\n")
    show(found, options)


def without_bos(source: Path, target: Path) -> None:
    """A copy that says that no BOS is put in front."""
    shutil.copyfile(source, target)
    field = GGUFReader(target, "r+").fields["tokenizer.ggml.add_bos_token"]
    field.parts[field.data[0]][:] = False


def generate(model: Path, prompt: list[int], options: argparse.Namespace) -> list[list[int]]:
    """The tokens of one text for each seed."""
    asked, answered = options.out.with_suffix(".requests"), options.out.with_suffix(".answers")
    body: dict[str, Any] = {
        "prompt": prompt, "n_predict": options.tokens, "temperature": options.temperature, "n_keep": 0,
        "return_tokens": True, "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip
    asked.write_text(json.dumps([("/completion", {**body, "seed": seed}) for seed in options.seeds]))
    command = [sys.executable, str(SERVER), str(model), str(options.context), str(asked), str(answered)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    answers = json.loads(answered.read_text())
    asked.unlink()
    answered.unlink()
    return [answer["tokens"] for answer in answers]


def nll(options: argparse.Namespace, tokens: list[int]) -> list[float]:
    """Of each token but the first, the sink kept."""
    model = load_model(str(options.model)).eval()
    cache = CacheSpec(1, options.context - 1)
    values: list[float] = stream_nll(model, torch.tensor(tokens), cache).tolist()
    return values


def show(found: dict[str, list[list[float]]], options: argparse.Namespace) -> None:
    """Perplexity before the first shift, and after."""
    say("| sink in llama.cpp | PPL of tokens before the first shift | after it, by text |\n|---|---|---|")
    for name, texts in found.items():
        before = [value for values in texts for value in values[: options.context - 2]]
        after = [values[options.context - 2 :] for values in texts]
        each = ", ".join(f"{exp(sum(values) / len(values)):.2f}" for values in after)
        say(f"| {name} | {exp(sum(before) / len(before)):.2f} | {each} |")


if __name__ == "__main__":
    main()
