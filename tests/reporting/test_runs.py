"""Runs as folders: everything that lies in them is found, shown, and traced to its file."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up_results import CACHE, made_up_nll, write_results
from made_up_runs import write_answers, write_run

from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.reporting.found import find
from sinktrain.reporting.gallery import gallery
from sinktrain.reporting.load import load_results
from sinktrain.reporting.material import made_of
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.report import report
from sinktrain.reporting.sources import Sources


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read the page's words; drawing takes most of its time."""
    monkeypatch.setattr(Picture, "svg", "<svg></svg>")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report([run], out=tmp_path_factory.mktemp("page") / "page.html").read_text()


def sections(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)(?:<sup.*?)?</h2>", page)


def test_all_that_is_there_is_shown(page: str) -> None:
    assert sections(page) == [
        "Verdict", "Every model", "The caches", "Cache size and sinks", "NLL along the stream", "Training",
        "Attention to the sink", "What leaves the cache is forgotten", "What a token costs", "A very long stream",
        "To repeat it",
    ]  # fmt: skip
    assert len(page) < 1_000_000


def test_what_is_missing_is_left_out(run: Path, tmp_path: Path) -> None:
    only = report([run / "answers", run / "bench"], out=tmp_path / "a.html").read_text()
    assert sections(only) == ["What leaves the cache is forgotten", "What a token costs", "To repeat it"]
    alone = report([run / "answers" / "recall.json"], out=tmp_path / "b.html").read_text()
    assert "Recall of a fact" in alone and "StreamEval" not in alone


def test_every_figure_and_table_names_sources_that_are_there(page: str, run: Path) -> None:
    parts = re.findall(r"<figure.*?</figure>|<table.*?</table>", page, flags=re.DOTALL)
    assert len(parts) > 20
    rows = dict(re.findall(r'<tr id="(source-\d+)">(.*?)</tr>', page, flags=re.DOTALL))
    used: set[str] = set()
    for part in parts:
        if 'id="sources"' in part:
            continue
        named = re.findall(r'<a href="#(source-\d+)"', part)
        assert named and set(named) <= set(rows), part[:200]
        used |= set(named)
    for panel in re.findall(r'<div class="panel">.*?</div>', page, flags=re.DOTALL):
        assert 'href="#source-' in panel or "Colour scale" in panel
    assert used | {"source-" + n for n in re.findall(r'href="#source-(\d+)"', page)} == set(rows)
    for row in rows.values():
        path, digest, command = re.findall(r"<code[^>]*>(.*?)</code>", row)
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12] == digest
        assert command.startswith(("sinktrain ", "scripts/"))
    assert "sinktrain fit --config fit.yaml" in page  # from run.json beside the log


def test_every_part_with_numbers_names_its_sources(page: str) -> None:
    body = page[page.index("<header>") : page.index('<h3 id="sources-h">')].replace('<div class="panel"><h3>', "")
    parts = re.split(r"(?=<h[123])|(?=<p class=\"note\" id=\"position-rules\")", body)
    assert len(parts) > 14
    for part in parts:
        words = re.sub(r"<[^>]*>", "", re.sub(r"<svg.*?</svg>|<sup.*?</sup>", "", part, flags=re.DOTALL))
        assert 'href="#source-' in part or not re.search(r"\d", words), words[:200]


def test_the_diagnosis_is_in_a_table(page: str) -> None:
    table = re.search(r'<table id="diagnosis".*?</table>', page, flags=re.DOTALL)
    assert table and table[0].count("13,752 (layer 1, position 0)") == 2 and "81.2%" in table[0]


def test_the_attention_of_heads_is_not_called_the_sink_metric(run: Path, page: str, tmp_path: Path) -> None:
    alone = report([run / "grid" / "none"], out=tmp_path / "a.html").read_text()
    below = "Sink_1 as they define it, sequence by sequence, is in the table below"
    for text, there in ((page, True), (alone, False)):
        assert "the share of heads above it is not their Sink_1: here the attention" in text
        assert (below in text) == there


def test_the_verdict_of_schema_2_says_what_could_have_been_seen(page: str) -> None:
    table = re.search(r'<table id="power".*?</table>', page, flags=re.DOTALL)
    assert table and "smallest difference seen, nats" in table[0] and "0.0042" in table[0] and "120,000" in table[0]
    assert "power of 80%" in table[0] and "All of its comparisons must hold." in page


def test_models_of_a_grid_are_grouped_by_their_seeds(run: Path, tmp_path: Path) -> None:
    sources = Sources()
    picture = gallery(made_of(find([run / "grid"], sources), sources))["table3"]
    rows = {(row["group"], row["cache"]): row for row in picture.data}
    assert {group for group, _ in rows} == {"token", "none"}
    ppl, low, high, seeds = (rows["token", "1+63"][name] for name in ("ppl", "low", "high", "seeds"))
    each = [json.loads((run / "grid" / f"token-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    nlls = [row["nll_full_cache"] for found in each for row in found["rows"] if row["name"] == "1+63"]
    assert float(ppl) == pytest.approx(math.exp(np.mean(nlls)))
    assert [float(seed) for seed in seeds.split()] == pytest.approx(np.exp(nlls), rel=1e-5)
    assert float(low) < float(ppl) < float(high)


def test_side_by_side_the_differences_are_those_of_the_tokens(run: Path, tmp_path: Path) -> None:
    folders = [run / "grid" / "none", run / "grid" / "token-0"]
    page = report(folders, out=tmp_path / "a.html", compare=True).read_text()
    table = re.search(r'<table class="paired">.*?</table>', page, flags=re.DOTALL)
    assert table and "token-0 minus none" in table[0]
    shown = {
        name: [float(value) for value in re.findall(r'<data value="([^"]+)"', cells)]
        for name, cells in re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table[0], flags=re.DOTALL)
    }
    first, second = (pq.read_table(folder / "nll.parquet") for folder in folders)
    for name in ("1+255", "0+256", "recompute", "recompute 64", "1+63"):
        series = second[name].to_numpy() - first[name].to_numpy()
        series = series[CACHE + 1 :]  # both caches are full: the model without a sink has one position less
        series = series[np.isfinite(series)]
        tokens, mean, low, high = shown[name]
        assert tokens == len(series) and mean == pytest.approx(series.mean(), abs=1e-6)
        assert low < mean < high


def write_two(folder: Path, **second: Any) -> list[Path]:
    """Two models on one text, the second with a tokenizer of its own: fewer tokens, as many bytes."""
    write_results(folder / "a", 1000, sink=False, layers=2, heads=2, name="a", bytes=4000)
    write_results(folder / "b", 800, sink=False, layers=2, heads=2, name="b",
                  **({"bytes": 4000, "sha256": "77" * 32} | second))  # fmt: skip
    return [folder / "a", folder / "b"]


def test_other_tokenizers_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    page = report(write_two(tmp_path), out=tmp_path / "p.html", compare=True).read_text()
    table = re.search(r'<table id="side-1".*?</table>', page, flags=re.DOTALL)
    assert table and "Bits per byte" in table[0] and 'class="paired"' not in page
    cells = re.search(r'<th scope="row">1\+255</th>(.*?)</tr>', table[0], flags=re.DOTALL)
    assert cells
    values = [float(value) for value in re.findall(r'<data value="([^"]+)"', cells[1])]
    for place, tokens in ((0, 1000), (3, 800)):
        nll = made_up_nll(tokens, sink=False)["1+255"][CACHE:].astype(np.float64).mean()
        assert values[place] == pytest.approx(nll * tokens / 4000 / math.log(2), rel=1e-3)
        assert values[place + 1] < values[place] < values[place + 2]
    assert "a: 1,000 tokens, 4,000 bytes; b: 800 tokens, 4,000 bytes" in page


@pytest.mark.parametrize(
    "second",
    [{"bytes": None}, {"spelling": None}, {"spelling": "other"}, {"text": "another"}],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, second: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="two evaluations of one text"):
        report(write_two(tmp_path, **second), out=tmp_path / "p.html", compare=True)
    assert not (tmp_path / "p.html").exists()


def results_of_schema_1(run: Path) -> str:
    path = run / "grid" / "none" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    return "has schema 1, and this version reads 2"


def cell_that_is_gone(run: Path) -> str:
    shutil.rmtree(run / "grid" / "none")
    return "is named by its grid.json"


def map_that_is_cut_off(run: Path) -> str:
    path = run / "diagnosis" / "base" / "maps.npz"
    path.write_bytes(path.read_bytes()[:500])
    return "maps.npz: is damaged"


def recall_without_a_field(run: Path) -> str:
    path = run / "answers" / "recall.json"
    record = json.loads(path.read_text())
    del record["rows"][0]["asked"]
    path.write_text(json.dumps(record))
    return "lacks `asked`; write it again with `sinktrain recall`"


def recall_of_infinitely_many(run: Path) -> str:
    path = run / "answers" / "recall.json"
    record = json.loads(path.read_text())
    record["rows"][0]["asked"] = math.inf
    path.write_text(json.dumps(record))
    return "recall.json: is malformed (cannot convert float infinity to integer)"


def stream_of_something_else(run: Path) -> str:
    (run / "bench" / "stream.json").write_text("{}")
    return "is of neither"


def log_that_is_empty(run: Path) -> str:
    (run / "fit" / "metrics.csv").write_text("")
    return "no column `step`"


SPOIL = [results_of_schema_1, cell_that_is_gone, map_that_is_cut_off, recall_without_a_field,
         recall_of_infinitely_many, stream_of_something_else, log_that_is_empty]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_malformed_file_is_one_sentence(run: Path, tmp_path: Path, spoil: Any, capsys: Any) -> None:
    shutil.copytree(run, tmp_path / "run")
    sentence = spoil(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "a.html")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "a.html").exists()


def test_nothing_to_show_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for runs, sentence in (([tmp_path / "empty"], "nothing to show"), ([tmp_path / "no"], "neither"), ([], "RUN")):
        with pytest.raises(UserError, match=sentence):
            report(runs, out=tmp_path / "a.html")
    with pytest.raises(UserError, match="not both"):
        report([run], out=tmp_path / "a.html", results=run / "grid" / "none")


def test_the_command_line_takes_runs_in_front(tmp_path: Path) -> None:
    write_answers(tmp_path / "one run")
    write_answers(tmp_path / "two")
    out = tmp_path / "a.html"
    assert main(["report", str(tmp_path / "one run"), str(tmp_path / "two"), "--out", str(out), "--overwrite"]) == 0
    assert out.read_text().count("recall.json</code>") == 2
    a, b = write_two(tmp_path / "models")
    assert main(["report", str(a), str(b), "--compare", "--out", str(tmp_path / "b.html")]) == 0
    assert "Side by side" in (tmp_path / "b.html").read_text()


def test_curves_are_of_the_largest_cache_and_the_main_rule(run: Path) -> None:
    results = load_results(run / "grid" / "token-0", "--results")
    assert len(results.rows) == 13
    assert [row.name for row in results.main_rows] == ["0+256", "1+255", "4+252", "dense", "recompute"]
    assert results.row("1+255 original").rule == "original"  # type: ignore[union-attr]
