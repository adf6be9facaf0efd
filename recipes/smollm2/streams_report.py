"""What `streams.py` says: the spread of a model's streams, the worst first tokens, and two models side by side."""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
from spread import compare_spreads

from sinktrain.base.errors import UserError
from sinktrain.base.terminal import say

NAMES = {"places": "different places of the text", "first_tokens": "one text behind different first tokens"}


def against(record: dict[str, Any], other: dict[str, Any], name: str) -> dict[str, Any]:
    """Compares the spreads of two records of the same streams, stream by stream; ratios are `record` over `other`.

    Raises:
        UserError: the streams are not the same.
    """
    for what in ("text", "settings"):
        mine, theirs = ({**each[what], "name": None} for each in (record, other))
        if mine != theirs:
            key = next(key for key in mine if mine[key] != theirs.get(key))
            raise UserError(
                f"--against {name}: has other streams ({what} {key}: {theirs.get(key)} there, {mine[key]} here); "
                "measure both models with the same options."
            )
    found: dict[str, Any] = {"model": other["model"]["name"], "file": name}
    for experiment in [name for name in NAMES if name in record["streams"] and name in other["streams"]]:
        mine, theirs = ({_key(s): s["nll"] for s in each["streams"][experiment]} for each in (record, other))
        sample = [_key(s) for s in other["streams"][experiment] if not s["special"]]
        if set(mine) != set(theirs):
            raise UserError(f"--against {name}: its streams begin with other tokens; is it of another tokenizer?")
        a, b = (np.array([nll[key] for key in sample]) for nll in (theirs, mine))
        found[experiment] = compare_spreads(a, b)
    return found


def _key(stream: dict[str, Any]) -> tuple[int | None, int]:
    return stream["place"], stream["first"]


def show(record: dict[str, Any], worst: int) -> None:
    """Prints a record."""
    settings = record["settings"]
    say(f"{record['model']['name']}, cache {settings['cache']}, {record['counted']} tokens of each stream counted")
    for name, found in record["spread"].items():
        words = NAMES[name]
        say(f"{found['streams']} streams, {words}:")
        say(f"  PPL {found['ppl']:.3f}, from {found['lowest']:.3f} to {found['highest']:.3f}")
        low, high = found["sd_ppl_interval"]
        say(f"  standard deviation of PPL {found['sd_ppl']:.4f} ({low:.4f} to {high:.4f} with 95% confidence)")
        low, high = found["sd_interval"]
        say(f"  the same of ln PPL {found['sd']:.5f} ({low:.5f} to {high:.5f})")
    streams = sorted(record["streams"].get("first_tokens", []), key=lambda stream: -stream["nll"])
    if streams:
        say(f"  worst first tokens: {', '.join(map(_in_words, [s for s in streams if not s['special']][:worst]))}")
    if special := [stream for stream in streams if stream["special"]]:
        say(f"  special first tokens, worst first: {', '.join(map(_in_words, special))}")
    if "against" in record:
        _show_comparison(record["against"])


def _in_words(stream: dict[str, Any]) -> str:
    return f"{stream['piece']!r} {exp(stream['nll']):.3f}"


def _show_comparison(found: dict[str, Any]) -> None:
    say(f"against {found['model']}, stream by stream:")
    for name, words in NAMES.items():
        if name not in found:
            continue
        each = found[name]
        low, high = each["ratio_interval"]
        down, up = each["difference_interval"]
        say(
            f"  {words}: standard deviation of ln PPL {each['ratio']:.3f} times as large ({low:.3f} to {high:.3f} with "
            f"95% confidence, permutation p = {each['p']:.4f}); ln PPL differs by {each['difference']:+.5f} "
            f"({down:+.5f} to {up:+.5f})"
        )
