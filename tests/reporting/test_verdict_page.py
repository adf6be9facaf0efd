"""Verdicts, of one model and over many: what is answered, of which model and text, and by which command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_up_runs import verdict_of_schema_2, write_grid

from sinktrain.reporting.compare import by_name
from sinktrain.reporting.found import find
from sinktrain.reporting.gallery import gallery
from sinktrain.reporting.material import made_of
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.report import report
from sinktrain.reporting.sources import Sources


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read words and data; drawing takes most of a page's time."""
    monkeypatch.setattr(Picture, "svg", "<svg></svg>")


@pytest.mark.parametrize(
    ("which", "interval", "answer"),
    [
        (0, [0.001, 0.05], "not shown"),
        (0, [0.02, 0.05], "no"),
        (0, [None, None], "not shown"),
        (2, [-0.01, 0.05], "not shown"),
        (2, [-0.02, 0.005], "no"),
    ],
)
def test_no_is_answered_only_where_the_data_say_so(
    tmp_path: Path, which: int, interval: list[float | None], answer: str
) -> None:
    verdict = verdict_of_schema_2()
    pair = [*verdict["comparisons"], verdict["needed"]][which]
    pair |= {"holds": False, "interval": interval}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    page = report([tmp_path / "verdict.json"], out=tmp_path / "a.html").read_text()
    table = re.search(r'<table id="comparisons".*?</table>', page, flags=re.DOTALL)
    assert table
    answers = re.findall(r"<td><strong>(.*?)</strong>", table[0])
    assert answers == [answer if place == which else "yes" for place in range(3)]


def test_a_verdict_without_its_command_has_one_that_runs(tmp_path: Path) -> None:
    folder = tmp_path / "a grid"
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(verdict_of_schema_2()))
    sources = Sources()
    find([folder], sources)
    assert [source.command for source in sources.found] == [
        f"sinktrain verify --results '{folder}' --cache 1+255 --against 4+252"
    ]


def test_a_verdict_over_many_is_shown_with_its_parts(tmp_path: Path) -> None:
    parts = [verdict_of_schema_2() | {"model": name} for name in ("token", "none")]
    parts[1]["statement"] = "not proven"
    over = verdict_of_schema_2() | {"statement": "not proven", "model": "token, none", "verdicts": parts}
    over["comparisons"] = [pair | {"model": part["model"]} for part in parts for pair in part["comparisons"]]
    write_grid(tmp_path / "grid", 1500)
    (tmp_path / "grid" / "verdict.json").write_text(json.dumps(over))
    page = report([tmp_path / "grid"], out=tmp_path / "a.html").read_text()
    assert '<p class="statement">not proven</p>' in page and "none: 1+255 minus 4+252" in page
    table = re.search(r'<table id="verdicts".*?</table>', page, flags=re.DOTALL)
    assert table and re.findall(r"<strong>(.*?)</strong>", table[0]) == ["proven", "not proven"]


def test_no_two_rows_of_the_data_of_a_picture_are_the_same_thing(tmp_path: Path) -> None:
    pairs = [(model, text) for model in ("token", "none") for text in ("stdlib (validation)", "b.txt")]
    parts = [verdict_of_schema_2() | {"model": model, "text": text} for model, text in pairs]
    over = verdict_of_schema_2() | {"model": "token, none", "needed": None, "verdicts": parts}
    over["comparisons"] = [
        pair | {"model": part["model"], "text": part["text"]} for part in parts for pair in part["comparisons"]
    ]
    write_grid(tmp_path / "grid", 1500)
    (tmp_path / "grid" / "verdict.json").write_text(json.dumps(over))
    sources = Sources()
    found = find([tmp_path / "grid"], sources)
    drawn = gallery(made_of(found, sources, by_name(found.results)))
    for name, known, count in (
        ("verdict", ("of", "question"), 8),
        ("needed", ("of", "question"), 4),
        ("difference-token-1", ("of", "a", "b"), 10),
        ("difference-none", ("of", "a", "b"), 10),
        ("table3", ("group", "cache"), 26),
    ):
        told = {tuple(row[column] for column in known) for row in drawn[name].data}
        assert len(told) == len(drawn[name].data) == count, name
