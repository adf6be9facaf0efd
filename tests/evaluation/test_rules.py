"""What `--both_rules` says is what the NLLs of the two rules say, worked out here in another way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain.cli import main
from sinktrain.data.prepared import PreparedText
from sinktrain.evaluation.results import read_results
from sinktrain.evaluation.rules import compare_rules, in_words
from sinktrain.evaluation.statistics.memory import interval_blocks
from sinktrain.evaluation.statistics.units import WIDER
from sinktrain.evaluation.verify import verify
from sinktrain.streaming import CacheSpec, reference_nll

TRAINED, SIZE, TOKENS = 48, 16, 500


@pytest.fixture(scope="module")
def short_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which says that it was trained on 48 positions."""
    folder = tmp_path_factory.mktemp("short")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.max_position_embeddings = TRAINED
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


def run(folder: Path, text: Path, out: Path, *more: str) -> int:
    return main(["evaluate", "--model.name", str(folder), "--text", str(text), "--out", str(out),
                 "--attention", "false", "--tokens", str(TOKENS), "--caches", "0+16 2+14 4+12",
                 "--recompute", "0", *more])  # fmt: skip


@pytest.fixture(scope="module")
def both(short_model: Path, prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "out"
    assert run(short_model, prepared_folder, out, "--both_rules", "true") == 0
    return out


def drawn(series: np.ndarray[Any, Any], block: int) -> list[float]:
    """A studentised moving-block bootstrap, block by block; how much of the error blocks see is the project's."""
    generator = np.random.default_rng(12345)
    count = math.ceil(len(series) / block)
    means = np.array([series[start : start + block].mean() for start in range(len(series) - block + 1)])
    tries = [means[generator.integers(len(means), size=count)] for _ in range(2000)]
    pivots = [(each.mean() - means.mean()) / (each.std(ddof=1) / math.sqrt(count)) for each in tries]
    kept = len(series) / block
    error = means.std() / math.sqrt((1 - 1 / kept) * kept * interval_blocks(series)[1])
    return [series.mean() - WIDER * error * float(end) for end in np.percentile(pivots, [97.5, 2.5])]


def test_the_record_is_what_the_nlls_say(both: Path) -> None:
    found = read_results(both)
    record = found.record["position_rules"]
    assert (record["cache"], record["array"], record["trained_length"]) == ("2+14", "2+14 original", TRAINED)
    # Without a sink token n is predicted by the query at n - 1, which sees position 0 from n - 1.
    for part, first in (("full_cache", SIZE + 1), ("past_trained_length", TRAINED + 1)):
        cache, original = found.nll["2+14"][first:], found.nll["2+14 original"][first:]
        pair, series = record[part], original - cache
        assert pair["tokens"] == TOKENS - first
        assert pair["ppl_cache"] == pytest.approx(math.exp(math.fsum(cache) / len(cache)), rel=1e-6)
        assert pair["ppl_original"] == pytest.approx(math.exp(math.fsum(original) / len(original)), rel=1e-6)
        assert pair["difference"] == pytest.approx(math.fsum(series) / len(series), abs=1e-6)
        low, high = drawn(series, pair["block_length"])
        assert pair["interval"] == pytest.approx([low, high], abs=0.05 * (high - low))  # 90% would miss it
        assert high - low > 1e-3  # the rules do differ here
    assert record["tokens"] == TOKENS - SIZE - 1 and record["tokens_past_trained_length"] == TOKENS - TRAINED - 1


def test_the_second_pass_is_the_reference_under_the_other_rule(
    both: Path, short_model: Path, prepared_folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(short_model, dtype=torch.float32).eval()
    text = torch.tensor(PreparedText(prepared_folder).tokens("validation")[:TOKENS].astype("int64"))
    expected = reference_nll(model, text, CacheSpec.parse("2+14"), rule="original").numpy()
    found = read_results(both).nll
    assert np.isnan(found["2+14 original"][0]) and np.abs(found["2+14 original"][1:] - expected).max() < 1e-3
    assert np.abs(found["2+14"][1:] - expected).max() > 0.01


def test_the_table_and_its_readers_stay_as_they_are(
    both: Path, short_model: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(short_model, prepared_folder, tmp_path / "one") == 0
    assert "rule original" not in capsys.readouterr().out
    one, two = read_results(tmp_path / "one"), read_results(both)
    assert "position_rules" not in one.record and one.record["schema"] == two.record["schema"] == 2
    names = [row["name"] for row in one.record["rows"]]
    assert [row["name"] for row in two.record["rows"]] == [*names, "2+14 original", "4+12 original"]
    assert [row["rule"] for row in two.record["rows"]] == ["cache"] * 3 + ["original"] * 2
    assert set(two.nll) - set(one.nll) == {"2+14 original", "4+12 original"}
    assert verify(both, tmp_path / "v.json", cache="2+14", against="4+12") == 2  # no recompute: judged as without


def test_started_from_the_other_side_the_difference_is_the_same(
    both: Path, short_model: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(short_model, prepared_folder, out, "--rule", "original", "--both_rules", "true") == 0
    one, other = read_results(both), read_results(out)
    assert np.array_equal(other.nll["2+14 cache"], one.nll["2+14"], equal_nan=True)
    for part in ("full_cache", "past_trained_length"):
        ours, theirs = one.record["position_rules"][part], other.record["position_rules"][part]
        assert theirs.pop("interval") == pytest.approx(ours["interval"])
        assert theirs == pytest.approx({name: ours[name] for name in theirs})
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rule original minus cache")]
    assert len(said) == 1 and f"past the trained length of {TRAINED}" in said[0]
    assert f"{one.record['position_rules']['past_trained_length']['difference']:+.4f} nats" in said[0]


@pytest.mark.parametrize("caches", ["0+16", "0+16 dense"])
def test_no_cache_with_sinks_is_one_sentence(
    caches: str, model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model_folder, prepared_folder, tmp_path / "out", "--caches", caches, "--both_rules", "true") == 2
    err = capsys.readouterr().err
    assert "--caches" in err and "--both_rules" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@given(
    sinks=st.integers(0, 3),
    size=st.integers(2, 30),
    trained=st.none() | st.integers(1, 400),
    tokens=st.integers(60, 300),
)
def test_which_tokens_are_past_the_trained_length(sinks: int, size: int, trained: int | None, tokens: int) -> None:
    cache = np.ones(tokens)
    cache[: 1 - min(sinks, 1)] = np.nan
    full = [n for n in range(tokens) if sinks + n - 1 >= size]
    past = [n for n in full if trained is not None and sinks + n - 1 > trained - 1]
    original = cache.copy()
    original[past] += 0.5
    found = compare_rules(cache, original, sinks, size, trained)
    assert found["tokens"] == len(full) and found["tokens_past_trained_length"] == len(past)
    assert found["full_cache"]["difference"] == pytest.approx(0.5 * len(past) / len(full))
    if past:
        beyond = found["past_trained_length"]
        assert beyond["difference"] == pytest.approx(0.5) and beyond["tokens"] == len(past)
        assert beyond["enough"] == (len(past) >= 200)  # a constant series has blocks of one token
    else:
        assert found["past_trained_length"] is None
    json.dumps(found)


@pytest.mark.parametrize(("trained", "tokens", "words"), [
    (100, 400, "on 300 tokens past the trained length of 100: +0.2500 nats a token (95% interval +0.2500 to +0.2500)"),
    (100, 150, "on 50 tokens past the trained length of 100: +0.2500 nats a token (95% interval +0.2500 to +0.2500; "
     "too few tokens to rely on)"),
    (400, 400, "on 384 tokens, none past the trained length of 400: +0.2500"),
    (None, 400, "on 384 tokens, no trained length is known: +0.2500"),
])  # fmt: skip
def test_the_line_on_the_terminal(trained: int | None, tokens: int, words: str) -> None:
    nll = np.ones(tokens)
    line = in_words({"cache": "1+15", **compare_rules(nll, nll + 0.25, 1, 16, trained)})
    assert line.startswith(f"rule original minus cache, 1+15, {words}")
