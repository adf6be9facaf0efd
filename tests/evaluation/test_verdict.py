"""The verdict on made-up NLLs whose truth is known."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from sinktrain.base.errors import UserError
from sinktrain.evaluation.results import Results
from sinktrain.evaluation.verdict import judge
from sinktrain.streaming import CacheSpec

MARGIN = math.log(1.01)


def made_up(tokens: int = 6000, one: float = 0.0, recompute: float = 0.0, window: float = 0.5, noise: float = 0.05,
            samples: int = 1000) -> Results:  # fmt: skip
    """NLLs with cache 1+31 worse than 4+28 by `one`, than recompute by `recompute`, and 0+32 by `window`."""
    generator = np.random.default_rng(0)
    base = generator.exponential(2.5, tokens)
    nll = {"1+31": base, "4+28": base - one + noise * generator.standard_normal(tokens), "0+32": base + window}
    fresh = base - recompute + noise * generator.standard_normal(tokens)
    fresh[np.setdiff1d(np.arange(tokens), np.linspace(40, tokens - 1, samples).astype(int))] = np.nan
    nll["recompute"] = fresh
    record = {"cache_size": 32, "model": {"name": "m", "sink": {"kind": "token", "count": 1}},
              "text": {"name": "t", "tokens": tokens}}  # fmt: skip
    return Results(record, nll, np.zeros(tokens, dtype=np.int64))


def verdict(results: Results, cache: str = "1+31", against: str = "4+28") -> dict[str, object]:
    return judge(results, CacheSpec.parse(cache), CacheSpec.parse(against), margin=MARGIN, resamples=1000, seed=0)


def test_proven_and_needed() -> None:
    found = verdict(made_up())
    assert found["statement"] == "proven"
    assert [pair["holds"] for pair in found["comparisons"]] == [True, True]
    assert found["needed"]["holds"] and found["needed"]["difference"] == pytest.approx(0.5)
    assert len(found["sentences"]) == 3 and found["sentences"][0].startswith("Proven")


@pytest.mark.parametrize("truth", [{"one": 0.012}, {"recompute": 0.02}, {"recompute": 0.005, "noise": 0.3}])
def test_not_proven_when_worse_or_when_too_noisy(truth: dict[str, float]) -> None:
    assert verdict(made_up(**truth))["statement"] == "not proven"


def test_the_words_tell_want_of_text_from_being_worse() -> None:
    noisy = verdict(made_up(noise=0.4))["sentences"][1]
    assert "1,000 tokens cannot tell from 0 (about" not in verdict(made_up())["sentences"][1]
    assert "tokens cannot tell from 0 (about" in noisy and "so it is worse" not in noisy
    worse = verdict(made_up(recompute=0.05))["sentences"][1]
    assert "from that of recompute by +5.0" in worse and "so it is worse" in worse


def test_better_by_more_than_the_margin_is_proven() -> None:
    assert verdict(made_up(one=-0.05, recompute=-0.05))["statement"] == "proven"


def test_a_difference_inside_the_margin_is_proven() -> None:
    found = verdict(made_up(one=0.004, noise=0.02))
    assert found["statement"] == "proven" and 0.003 < found["comparisons"][0]["difference"] < 0.005


@pytest.mark.parametrize("truth", [{"tokens": 150, "samples": 50}, {"samples": 100}])
def test_too_little_text_could_not_be_judged(truth: dict[str, int]) -> None:
    found = verdict(made_up(**truth))
    assert found["statement"] == "could not be judged"


def test_nothing_to_compare_with_could_not_be_judged() -> None:
    results = made_up()
    del results.nll["recompute"]
    found = verdict(results)
    assert found["statement"] == "could not be judged" and "--recompute" in found["sentences"][0]


def test_numbers_that_are_not_finite_could_not_be_judged() -> None:
    results = made_up()
    results.nll["1+31"][3000] = np.nan
    assert verdict(results)["statement"] == "could not be judged"


def test_tokens_before_the_cache_is_full_do_not_count() -> None:
    results = made_up()
    results.nll["1+31"][:32] += 1e6
    found = verdict(results)
    assert found["statement"] == "proven" and found["comparisons"][0]["tokens"] == 6000 - 32


def test_not_needed_is_said() -> None:
    found = verdict(made_up(window=0.001))
    assert not found["needed"]["holds"] and "not shown to be needed" in found["sentences"][2]


@pytest.mark.parametrize("against", ["1+31", "0+32"])
def test_a_cache_is_not_judged_against_itself_or_less(against: str) -> None:
    with pytest.raises(UserError, match=rf"--against {re.escape(against)}: must keep more .*; try 4\+28\."):
        verdict(made_up(), against=against)
    with pytest.raises(UserError, match=r"more sinks than --cache 4\+28; try 5\+27\."):
        verdict(made_up(), cache="4+28", against=against)


def test_no_sink_is_not_asked_whether_it_is_needed() -> None:
    record = verdict(made_up(), cache="0+32", against="1+31")
    assert record["needed"] is None and "was not measured" in record["sentences"][2]  # type: ignore[index]


def test_a_cache_below_the_largest_is_compared_with_the_recompute_of_its_size() -> None:
    results = made_up()
    results.record["cache_size"] = 64
    assert "recompute 32 was not measured" in verdict(results)["sentences"][0]
    results.nll["recompute 32"], results.nll["recompute"] = results.nll["recompute"], results.nll["recompute"] - 9
    found = verdict(results)
    assert found["statement"] == "proven" and found["cache_size"] == 32
    assert found["comparisons"][1]["b"] == "recompute 32"


def test_noise_with_a_long_memory_could_not_be_judged() -> None:
    """400 tokens that move as one are no 400 tokens."""
    results, generator = made_up(tokens=432, samples=392), np.random.default_rng(2)
    drift = np.zeros(432)
    for t in range(1, 432):
        drift[t] = 0.98 * drift[t - 1] + 0.2 * generator.standard_normal()
    results.nll["4+28"] = results.nll["1+31"] + drift
    found = verdict(results)
    assert found["statement"] == "could not be judged" and "--tokens" in found["sentences"][0]


def test_caches_of_different_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="--against"):
        verdict(made_up(), against="4+29")


def test_a_cache_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UserError, match=r"2\+30"):
        verdict(made_up(), against="2+30")
