"""The statistics, each against a second way to the same number, and their error rates on series like real ones."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sinktrain.evaluation.statistics import Interval, estimate, estimate_over_seeds, holm
from sinktrain.evaluation.statistics.memory import MOST_BLOCKS, interval_blocks
from sinktrain.evaluation.statistics.pivots import Drawn, Pivot, Student
from sinktrain.evaluation.statistics.units import WIDER, blocks, whole_documents

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "statistics"))

import simulate
from made_up import shapes

REAL = shapes()


def normal(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


def test_the_error_of_single_tokens_is_the_textbook_one() -> None:
    series = normal(500)
    assert blocks(series, 1).standard_error() == pytest.approx(series.std(ddof=1) / np.sqrt(500))


def test_the_error_of_documents_is_that_of_a_ratio() -> None:
    """By hand from Cochran (1977), equation 6.13."""
    series, documents = normal(40), np.repeat([3, 4, 7, 9], [4, 6, 10, 20])
    totals = np.array([series[documents == each].sum() for each in (3, 4, 7, 9)])
    counts = np.array([4, 6, 10, 20])
    residuals = totals - series.mean() * counts
    by_hand = np.sqrt((residuals**2).sum() / 3 / 4) / counts.mean()
    units = whole_documents(series, documents)
    assert units.standard_error() == pytest.approx(by_hand) and units.mean == pytest.approx(series.mean())


def test_the_pivot_is_what_a_plain_loop_draws() -> None:
    series, documents = normal(60), np.repeat(np.arange(6), 10)
    units = whole_documents(series, documents)
    generator, values = np.random.default_rng(4), []
    for chosen in generator.integers(0, 6, size=(50, 6)):
        drawn = [series[documents == each] for each in chosen]
        means = np.array([each.mean() for each in drawn])
        error = max(means.std(ddof=1) / np.sqrt(6), 0.2 * units.standard_error())
        values.append((np.concatenate(drawn).mean() - series.mean()) / error)
    assert units.pivot(50, 4).values == pytest.approx(WIDER * np.sort(values))


def test_no_block_lies_in_two_documents() -> None:
    series = np.arange(23.0)
    documents = np.repeat([0, 1, 2, 3, 4], [8, 2, 2, 8, 3])  # 1 and 2 are short, and count as one; 4 as one with 3
    starts = [first for first in range(20) if not any(first < edge < first + 4 for edge in (8, 12))]
    expected = [series[first : first + 4].sum() for first in starts]
    assert blocks(series, 4, documents).sums.tolist() == expected
    assert len(blocks(series, 4).sums) == 20


@given(st.lists(st.floats(-9, 9), min_size=40, max_size=200), st.floats(-3, 3))
def test_p_values_agree_with_bounds(values: list[float], margin: float) -> None:
    pivot = Drawn(np.sort(np.array(values)))
    for found in (Interval(0.1, 0.7, pivot, 100, 1), Interval(0.1, 0.7, Student(2.5, 1.1), 100, 1)):
        if abs(found.upper - margin) > 1e-9:
            assert (found.p_below(margin) <= 0.05) == (found.upper < margin)
        if abs(found.lower - margin) > 1e-9:
            assert (found.p_above(margin) <= 0.05) == (found.lower > margin)


def test_without_any_spread_all_is_sure() -> None:
    found = estimate(np.full(300, 0.5))
    assert (found.low, found.upper, found.standard_error, found.tokens_wanted(0.1)) == (0.5, 0.5, 0.0, 0.0)
    assert found.p_below(0.6) < 0.001 and found.p_below(0.5) == 1 and found.p_above(0.5) == 1
    assert found.p_above(0.4) < 0.001


def test_student_is_scipys() -> None:
    pivot = Student(3.7)
    assert pivot.quantile(0.05) == pytest.approx(stats.t.ppf(0.05, 3.7))
    assert pivot.at_least(1.2) == pytest.approx(stats.t.sf(1.2, 3.7))
    assert Student(3.7, 2.0).quantile(0.05) == pytest.approx(stats.t.ppf(0.05, 3.7, scale=2))
    assert Student(3.7, 2.0).at_most(-1.2) == pytest.approx(stats.t.cdf(-1.2, 3.7, scale=2))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_documents_are_drawn_when_there_are_enough() -> None:
    series = normal(4000)
    few, many = np.repeat(np.arange(5), 800), np.repeat(np.arange(40), 100)
    one_long = np.concatenate((np.arange(100), np.full(3900, 100)))  # 101 documents, nearly all tokens in one
    found = [estimate(series, each, resamples=200) for each in (None, few, many, one_long)]
    assert [each.resampled for each in found] == ["blocks", "blocks", "documents", "blocks"]
    assert found[1].effective_documents == pytest.approx(5) and found[3].documents == 101
    assert found[2].units == 40 and found[2].block_length == 0


def test_what_differs_between_documents_widens_the_interval() -> None:
    """Teeth: tokens of 40 documents with means of their own are no 4,000 independent tokens."""
    documents = np.repeat(np.arange(40), 100)
    series = normal(4000) + normal(40, seed=1)[documents]
    naive = series.std(ddof=1) / np.sqrt(4000)
    found = estimate(series, documents).standard_error
    assert found > 5 * naive
    means = series.reshape(40, 100).mean(axis=1)
    assert found == pytest.approx(means.std(ddof=1) / np.sqrt(40))


def test_long_texts_have_no_more_blocks_than_tell_something() -> None:
    series = normal(50_000)
    assert 50_000 / interval_blocks(series)[0] <= MOST_BLOCKS
    assert interval_blocks(normal(30)) == (1, 1.0)


def test_seeds_that_differ_cost_what_a_t_of_few_costs() -> None:
    """Three models that are apart by far more than the text explains: the textbook t with 2 degrees of freedom."""
    series = 0.01 * normal(1000) + np.array([[-1.0], [0.0], [2.5]])
    found = estimate_over_seeds(series)
    means = series.mean(axis=1)
    by_hand = stats.t.interval(0.95, 2, means.mean(), WIDER * stats.sem(means))
    assert (found.low, found.high) == pytest.approx(by_hand, rel=1e-3) and found.df == pytest.approx(2, abs=1e-3)
    assert found.seeds == 3 and found.tokens_wanted(0.1) is None  # no text makes up for that
    assert found.tokens_wanted(100.0) == pytest.approx(0, abs=1)


def test_seeds_that_are_alike_cost_nothing() -> None:
    """The same model three times tells what one tells, and the text is what is uncertain."""
    series = normal(2000)
    one, three = estimate(series), estimate_over_seeds(np.stack([series] * 3))
    assert three.standard_error == pytest.approx(one.standard_error, rel=1e-6) and three.between_seeds < 1e-12
    assert three.high == pytest.approx(one.high, abs=0.15 * (one.high - one.low))


def test_noise_of_each_seed_is_counted_once() -> None:
    """Independent noise in all seeds and tokens: the error of the mean of all of them, hardly more."""
    errors = [estimate_over_seeds(normal(4, 1000, seed=s)).standard_error for s in range(60)]
    assert 1 <= np.sqrt(np.mean(np.square(errors)) * 4000) < 1.25


@pytest.mark.parametrize("shape", [(3, 0), (0,), (1, 0)])
def test_seeds_without_tokens_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="empty or not finite"):
        estimate_over_seeds(np.zeros(shape if len(shape) == 2 else (2, 0)))


@pytest.mark.parametrize("pivot", [Drawn(np.sort(1 - np.random.default_rng(0).exponential(size=9999))), Student(3)])
def test_power_is_what_it_says(pivot: Pivot) -> None:
    """80% where the pivot is known exactly: leaning to one side, or a t, by which both limits are the same."""
    first = Interval(0.0, 0.5, pivot, 100, 1)
    found = [Interval(0.5 * pivot.quantile((k + 0.5) / 2000), 0.5, pivot, 100, 1) for k in range(2000)]
    assert np.mean([each.lower + first.smallest_difference > 0 for each in found]) == pytest.approx(0.8, abs=0.002)
    assert np.mean([each.upper < first.smallest_margin for each in found]) == pytest.approx(0.8, abs=0.002)
    assert (first.smallest_difference < 0.8 * first.smallest_margin) == isinstance(pivot, Drawn)


def test_power_on_series_like_real_ones() -> None:
    """Near 80% on average over 300 series (standard error 2.3%): each knows its own pivot and error only."""
    margin = estimate(normal(2000), resamples=999).smallest_margin
    assert margin == pytest.approx((1.645 + 0.842) / np.sqrt(2000), rel=0.1)
    found = simulate.power(300, partial(simulate.one_text, REAL["difference"], 8000, 0.3))
    assert found["difference seen"] == pytest.approx(0.8, abs=0.05)
    assert found["0 proven"] == pytest.approx(0.8, abs=0.05)  # which is how often the mirror image is seen


def test_the_mirror_image_has_its_limits_swapped() -> None:
    series = REAL["difference"].noise(2000, 0.3, np.random.default_rng(0))[0]
    found, mirrored = (estimate(sign * series, resamples=399) for sign in (1, -1))
    assert mirrored.smallest_difference == pytest.approx(found.smallest_margin) != found.smallest_difference
    assert mirrored.smallest_margin == pytest.approx(found.smallest_difference)


def test_as_many_tokens_as_are_wanted_are_enough() -> None:
    first = estimate(normal(1000))
    wanted = first.tokens_wanted(0.02)
    assert wanted is not None and 10_000 < wanted < 22_000
    assert estimate(normal(int(wanted), seed=1)).smallest_margin == pytest.approx(0.02, rel=0.1)
    skewed = estimate(REAL["difference"].noise(1000, 0.3, np.random.default_rng(0))[0])
    assert skewed.tokens_wanted(skewed.smallest_margin) == pytest.approx(1000)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(1, 70))
def test_any_documents_and_blocks_give_numbers(documents: int, block: int) -> None:
    number = np.sort(np.random.default_rng(documents).integers(0, documents, 100))
    found = estimate(normal(100), number, block=block, resamples=100)
    assert np.isfinite([found.low, found.lower, found.upper, found.high, found.smallest_difference]).all()
    assert found.low <= found.lower <= found.mean <= found.upper <= found.high


@pytest.mark.parametrize("shape", ["nll", "difference"])
def test_error_rates_on_series_like_real_ones(shape: str) -> None:
    """300 series of 2,000 tokens: 95% should hold the truth (standard error 1.3%), 5% or fewer be falsely proven."""
    found = simulate.count(
        300, lambda generator, index: estimate(REAL[shape].noise(2000, 0.3, generator)[0], resamples=399, seed=index)
    )
    assert 0.92 <= found["coverage of 95%"] <= 0.985
    assert found["false proven"] <= 0.08 and found["false needed"] <= 0.08


def test_the_truth_of_a_shape_is_known() -> None:
    """Its mean is 0 and its deviation 1, and its noise has both, and the memory it was asked for."""
    for name in ("nll", "difference"):
        series = REAL[name].noise(400_000, 0.6, np.random.default_rng(0))[0]
        assert abs(series.mean()) < 0.02 and series.std() == pytest.approx(1, rel=0.05)
        ranks = stats.rankdata(series)
        assert np.corrcoef(ranks[:-1], ranks[1:])[0, 1] == pytest.approx(6 / np.pi * np.arcsin(0.3), abs=0.01)
    skewness, kurtosis = REAL["difference"].moments()
    assert kurtosis > 8 and skewness != 0


def test_three_seeds_are_covered_and_a_bootstrap_of_them_would_not_be() -> None:
    found = {}
    for method in (simulate.crossed_t, simulate.crossed_bootstrap):
        lines = {tuple(row.values()): draw for row, draw in simulate.seed_lines(method)}
        found[method] = simulate.count(80, lines[3, 0.95, 0.05])["coverage of 95%"]
    assert found[simulate.crossed_t] > 0.88 and found[simulate.crossed_bootstrap] < 0.85


@pytest.mark.slow
def test_error_rates_over_many_settings() -> None:
    """93 to 97% coverage in each, and under 5% falsely proven over all."""
    found = []
    for index, (row, draw) in enumerate(simulate.text_lines()):
        if row["tokens"] >= 2000:
            found.append(simulate.count(1000, draw, seed=100 + index))
    assert all(0.93 <= each["coverage of 95%"] <= 0.97 for each in found)
    assert np.mean([each["false proven"] for each in found]) < 0.05
    assert max(each["false proven"] for each in found) < 0.07  # 1,000 tries: three standard errors
