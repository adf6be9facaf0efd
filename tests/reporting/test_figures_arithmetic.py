"""What the figures draw is what the numbers say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up_results import CACHE, Files, write_all, write_nll

from sinktrain.base.errors import UserError
from sinktrain.reporting.load import load_metrics, load_results
from sinktrain.reporting.numbers import change, nats, ppl
from sinktrain.reporting.report import report
from sinktrain.reporting.series import curves, far_rows, moving_average


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_all(tmp_path_factory.mktemp("arithmetic") / "in", tokens=2048, layers=4, heads=3)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 600), known=st.floats(0, 1))
@example(seed=1, length=600, known=1.0)  # long enough for the quarter to be what counts
def test_the_average_is_over_the_last_quarter(seed: int, length: int, known: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(length) < known, rng.random(length) * 20, np.nan).astype(np.float32)
    found = moving_average(values)
    assert len(found) == length
    for end in {*range(1, min(length, 80) + 1), length // 2 + 1, length}:
        stretch = values[max(0, end - max(64, end // 4)) : end].astype(np.float64)
        if end < 16 or np.isnan(stretch).all():
            assert math.isnan(found[end - 1])
        else:
            assert found[end - 1] == pytest.approx(np.nanmean(stretch), abs=1e-9)


def test_a_recompute_dot_moves_with_its_paired_difference(files: Files) -> None:
    results = load_results(files.results, "--results")
    shift = 0.25
    results.nll["recompute"] = np.where(np.isfinite(results.nll["recompute"]), results.nll["1+255"] + shift, np.nan)
    drawn = {curve.row.name: curve for curve in curves(results)}
    dots = drawn["recompute"]
    assert dots.dots and len(dots.x) >= 4
    line = moving_average(results.nll["1+255"])
    assert dots.y == pytest.approx([line[int(x) - 1] + shift for x in dots.x], abs=1e-5)


def test_only_a_row_far_above_the_rest_gets_its_own_scale(files: Files) -> None:
    tuned, base = load_results(files.results, "--results"), load_results(files.base, "--base")
    assert far_rows(tuned) == {"0+256"}
    assert far_rows(base) == set()


def test_every_cell_of_the_attention_picture_is_drawn(files: Files, tmp_path: Path) -> None:
    page = report(out=tmp_path / "a.html", results=files.results, base=files.base).read_text()
    assert len(re.findall(r'href="data:image/png;base64,', page)) == 3  # before, after, and their one scale
    assert "Before: base" in page and "After: fine-tuned" in page


def test_empty_cells_of_the_log_are_skipped(files: Files) -> None:
    series = load_metrics(files.metrics)
    assert set(series) == {"train/loss", "val/loss"}
    assert series["val/loss"].step.tolist() == list(range(0, 301, 50))
    assert len(series["train/loss"].value) == 61


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (ppl(32.904), "32.90"), (ppl(3412.4), "3,412"), (ppl(1.2e9), "1.2 \u00d7 10\u2079"),
        (ppl(math.inf), "infinite"),
        (ppl(math.nan), "\u2013"), (nats(-0.00246), "\u22120.0025"), (nats(0.1), "+0.1000"),
        (change(0.00995), "PPL +1.00%"), (change(5.0), "PPL \u00d7 148.41"), (change(2000.0), "PPL \u00d7 infinite"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_readers(written: str, expected: str) -> None:
    assert written == expected


def test_too_few_tokens_are_not_called_a_no(files: Files, tmp_path: Path) -> None:
    verdict = json.loads(files.verdict.read_text())
    verdict["statement"] = "could not be judged"
    verdict["comparisons"][1] |= {"enough": False, "holds": False}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    page = report(out=tmp_path / "a.html", results=files.results, verdict=tmp_path / "verdict.json").read_text()
    answers = re.findall(r"<td><strong>(.*?)</strong></td>", page)
    assert answers == ["yes", "too few tokens", "yes"]


def test_a_row_that_is_not_finite_makes_a_page_all_the_same(tmp_path: Path) -> None:
    files = write_all(tmp_path / "in", tokens=CACHE * 4, layers=2, heads=2)
    data = json.loads((files.results / "results.json").read_text())
    data["rows"][0] |= {"ppl_all": math.inf, "ppl_full_cache": math.inf, "nll_full_cache": math.nan, "interval": None}
    (files.results / "results.json").write_text(json.dumps(data))
    assert "infinite" in report(out=tmp_path / "a.html", results=files.results, base=files.base).read_text()


def test_a_name_with_dollars_is_not_mathematics(files: Files, tmp_path: Path) -> None:
    verdict = json.loads(files.verdict.read_text())
    verdict["comparisons"][0]["b"] = r"$\frac{</svg><b>$"
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    page = report(out=tmp_path / "a.html", results=files.results, verdict=tmp_path / "verdict.json").read_text()
    assert r"1+255 minus $\frac{&lt;/svg&gt;&lt;b&gt;$" in page and "</svg><b>" not in page


def test_a_place_that_cannot_be_written_is_named(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--out"):
        report(out=tmp_path / "file" / "a.html", results=files.results)
    with pytest.raises(UserError, match="--out"):
        report(out=tmp_path, results=files.results)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_page_that_fails_while_written_leaves_the_old_one(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.html").write_text("mine")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        report(out=tmp_path / "a.html", results=files.results, overwrite=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_array_is_named(files: Files, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "results.json").write_text((files.results / "results.json").read_text())
    with pytest.raises(UserError, match=r"nll\.parquet: no such file"):
        load_results(tmp_path / "in", "--results")
    write_nll(tmp_path / "in", {"0+256": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match=r"nll\.parquet: lacks the column `1\+255`"):
        load_results(tmp_path / "in", "--results")
    (tmp_path / "in" / "nll.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"nll\.parquet: is damaged"):
        load_results(tmp_path / "in", "--results")


def test_what_is_read_is_what_the_number_is(files: Files, tmp_path: Path) -> None:
    page = report(out=tmp_path / "a.html", results=files.results, base=files.base, verdict=files.verdict).read_text()
    table = page[page.index('<table id="caches"') :]
    table = table[: table.index("</table>")]
    cells = re.findall(r'<td class="n(?: \w+)?"><data value="([^"]+)">([^<]+)</data></td>', table)
    assert len(cells) == 20  # PPL all and PPL full cache, of five rows, of two models
    for value, shown in cells:
        assert float(shown.replace(",", "")) == pytest.approx(float(value), abs=0.5 if float(value) > 1000 else 0.005)
