"""Prints the README's table of families from what the tests measure: python tests/streaming/families_table.py"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from family_models import FAMILIES, NO_4D_MASK, REFUSED, make, masked_nll, some_tokens  # noqa: E402

from sinktrain.base.errors import UserError  # noqa: E402
from sinktrain.streaming import CacheSpec, Positions, reference_nll, stream_nll  # noqa: E402

CACHES = ["0+9", "4+10", "1+15", "2+30"]
CHUNKS = (1, 7, 1000)


def exact_to(name: str, rule: str) -> str:
    """The largest difference in NLL (nats) over the tests' caches and chunks, rounded up to one digit."""
    if rule == "original" and name in NO_4D_MASK:
        return "not compared"
    model, tokens = make(FAMILIES[name]), some_tokens()
    worst = 0.0
    for cache in map(CacheSpec.parse, CACHES):
        expected = reference_nll(model, tokens, cache) if rule == "cache" else None
        for chunk in CHUNKS:
            found = stream_nll(model, tokens, cache, rule=rule, chunk=chunk)  # type: ignore[arg-type]
            against = masked_nll(model, tokens, cache) if expected is None else expected
            worst = max(worst, float((found - against).abs().max()))
    digit, power = f"{worst:.0e}".split("e")
    return f"{digit}e{int(power)}"


def main() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    print("| family | positions | `cache` rule, against token by token | `original` rule, against one masked forward |")
    print("|---|---|---|---|")
    for name, fields in FAMILIES.items():
        kind = Positions.probe(make(fields)).kind
        print(f"| {name} | {kind} | {exact_to(name, 'cache')} | {exact_to(name, 'original')} |", flush=True)
    for name, (fields, _) in REFUSED.items():
        try:
            Positions.probe(make(fields))
        except UserError as error:
            why = str(error).split(" since ")[1].split("; use")[0]
            print(f"| {name} | refused: {why} | | |", flush=True)


if __name__ == "__main__":
    main()
