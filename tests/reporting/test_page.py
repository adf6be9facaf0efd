"""The page says what the files say, stands alone, and is absent when something is wrong."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_up_results import Files, write_all

from sinktrain.base.errors import UserError
from sinktrain.reporting.report import report


class Reader(HTMLParser):
    """Text, tags with their attributes, and the numbers of <data value=...> by table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[float]] = {}
        self.words: list[str] = []
        self._table = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table = dict(attrs).get("id") or "other"
        if tag == "data":
            self.tables.setdefault(self._table, []).append(float(dict(attrs)["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        self._table = "" if tag == "table" else self._table

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return write_all(tmp_path / "in", tokens=1500, layers=4, heads=3)


def page_of(files: Files, out: Path, **changed: Path | None) -> str:
    options = {"base": files.base, "verdict": files.verdict, "metrics": files.metrics, "settings": files.settings}
    return report(out=out, results=files.results, **{**options, **changed}).read_text()  # type: ignore[arg-type]


def record(folder: Path) -> dict[str, list[dict[str, float]]]:
    return json.loads((folder / "results.json").read_text())


def test_every_figure_of_the_table_is_that_of_the_files(files: Files, tmp_path: Path) -> None:
    found = Reader(page_of(files, tmp_path / "a.html")).tables["caches"]
    expected = []
    tuned, base = record(files.results)["rows"], {row["name"]: row for row in record(files.base)["rows"]}
    for row in tuned:
        for one in (row, base[row["name"]]):
            expected += [
                one["ppl_all"],
                one["ppl_full_cache"],
                *one["interval"],
                one["tokens"],
                one["tokens_full_cache"],
            ]
    assert len(expected) >= 24 and found == pytest.approx(expected)


def test_the_verdict_is_on_top(files: Files, tmp_path: Path) -> None:
    reader = Reader(page_of(files, tmp_path / "a.html"))
    verdict = json.loads(files.verdict.read_text())
    places = [reader.text.index(part) for part in (verdict["statement"], *verdict["sentences"])]
    assert places == sorted(places) and places[0] < reader.text.index("The caches")
    pairs = [(p, "upper") for p in verdict["comparisons"]] + [(verdict["needed"], "lower")]
    expected = [x for p, bound in pairs for x in (p["tokens"], p["difference"], *p["interval"], p[bound])]
    assert reader.tables["comparisons"] == pytest.approx(expected)


def test_the_speed_of_a_row_counts_the_tokens_that_it_predicted(files: Files, tmp_path: Path) -> None:
    data = record(files.results)
    data["rows"][0] |= {"tokens": 1499, "seconds": 0.0}
    data["rows"][4] |= {"tokens": 256, "seconds": 512.37, "tokens_per_second": 511.6}  # of windows of 1,024
    (files.results / "results.json").write_text(json.dumps(data))
    page = page_of(files, tmp_path / "a.html", base=None)
    found = Reader(page).tables["speed"]
    assert found[::2] == [row["seconds"] for row in data["rows"]] and math.isnan(found[1])
    assert found[3::2] == pytest.approx([row["tokens"] / row["seconds"] for row in data["rows"][1:]])
    assert "predicted tokens/s" in page and ">0.5</data>" in page


def test_it_stands_alone(files: Files, tmp_path: Path) -> None:
    page = page_of(files, tmp_path / "a.html")
    assert len(page) < 1_000_000
    tags = Reader(page).tags
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:"))
    assert not re.search(r"https?:", page)
    assert not re.search(r"@import|url\((?!#|['\"]?data:)", page)


def test_figures_are_well_formed_and_have_names(files: Files, tmp_path: Path) -> None:
    page = page_of(files, tmp_path / "a.html")
    figures = [svg for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL) if "aria-hidden" not in svg[:200]]
    assert len(figures) >= 7  # two forests, two streams, the loss, two maps and their scale
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for svg in figures:
        root = ET.fromstring(svg)
        assert root.get("viewBox") and (root.get("aria-label") or root.get("aria-labelledby"))
    assert "prefers-color-scheme" in page and "font-family" in page


def test_what_it_takes_to_repeat_is_there(files: Files, tmp_path: Path) -> None:
    text = Reader(page_of(files, tmp_path / "a.html")).text
    result = record(files.results)
    assert str(result["command"]) in text and result["text"]["sha256"] in text  # type: ignore[call-overload]
    for name, value in result["environment"].items():  # type: ignore[attr-defined]
        assert name in text and value in text
    for line in files.settings.read_text().splitlines():
        assert " ".join(line.split()) in text


def test_names_cannot_become_markup(files: Files, tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>'
    for folder in (files.results, files.base):
        data = record(folder)
        data["model"]["name"] = data["text"]["name"] = hostile  # type: ignore[call-overload]
        (folder / "results.json").write_text(json.dumps(data))
    verdict = json.loads(files.verdict.read_text())
    verdict["sentences"][0] = verdict["model"] = hostile
    files.verdict.write_text(json.dumps(verdict))
    files.settings.write_text(hostile)
    reader = Reader(page_of(files, tmp_path / "a.html"))
    assert "script" not in {tag for tag, _ in reader.tags} and hostile in reader.text


@pytest.mark.parametrize("missing", ["base", "verdict", "metrics", "settings"])
def test_each_part_may_be_missing(files: Files, tmp_path: Path, missing: str) -> None:
    text = Reader(page_of(files, tmp_path / "a.html", **{missing: None})).text
    assert ("not judged" in text) == (missing == "verdict")
    assert "The caches" in text


def test_the_lost_sink_is_explained_only_where_there_was_one(files: Files, tmp_path: Path) -> None:
    assert "it has lost the sink token" in Reader(page_of(files, tmp_path / "a.html")).text
    alone = report(out=tmp_path / "b.html", results=files.base).read_text()
    assert "it has lost the sink token" not in Reader(alone).text


@pytest.mark.parametrize("statement", ["not proven", "could not be judged"])
def test_other_verdicts_are_said_as_loudly(files: Files, tmp_path: Path, statement: str) -> None:
    verdict = json.loads(files.verdict.read_text()) | {"statement": statement}
    files.verdict.write_text(json.dumps(verdict))
    page = page_of(files, tmp_path / "a.html")
    assert re.search(rf'<p class="statement">{statement}</p>', page)


def break_schema(files: Files) -> str:
    (files.results / "results.json").write_text(json.dumps({**record(files.results), "schema": 99}))
    return "--results"


def break_array(files: Files) -> str:
    pq.write_table(pq.read_table(files.base / "nll.parquet").drop_columns("1+255"), files.base / "nll.parquet")
    return "--base"


def break_verdict(files: Files) -> str:
    files.verdict.unlink()
    return "--verdict"


def break_metrics(files: Files) -> str:
    files.metrics.write_text("epoch,loss\n1,2\n")
    return "--metrics"


def break_text(files: Files) -> str:
    data = record(files.base)
    data["text"]["sha256"] = "another"  # type: ignore[call-overload]
    (files.base / "results.json").write_text(json.dumps(data))
    return "--base"


@pytest.mark.parametrize("spoil", [break_schema, break_array, break_verdict, break_metrics, break_text])
def test_bad_input_names_the_option_and_leaves_nothing(
    files: Files, tmp_path: Path, spoil: Callable[[Files], str]
) -> None:
    option = spoil(files)
    with pytest.raises(UserError, match=option):
        page_of(files, tmp_path / "out" / "a.html")
    assert not (tmp_path / "out").exists()


def test_an_existing_page_is_kept(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(UserError, match="--out"):
        page_of(files, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == "mine"
