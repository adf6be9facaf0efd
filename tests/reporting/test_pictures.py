"""The pictures alone: files in light and dark, with their data, in colours that can be told apart and read."""

from __future__ import annotations

import csv
import json
import struct
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import (  # fmt: skip
    MODEL,
    PLAIN,
    write_answers,
    write_bench,
    write_diagnosis,
    write_flat,
    write_grid,
    write_training,
)

from sinktrain.base.errors import UserError
from sinktrain.reporting.diagnosis import load_diagnosis
from sinktrain.reporting.found import find
from sinktrain.reporting.gallery import gallery
from sinktrain.reporting.material import made_of
from sinktrain.reporting.picture import DASHES
from sinktrain.reporting.pictures.common import TURN
from sinktrain.reporting.report import report
from sinktrain.reporting.sources import Sources
from sinktrain.reporting.svg import PAINTS, palette, style

GROUND = {"light": "#fdfcfa", "dark": "#15171a"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    write_answers(place / "run" / "answers")
    write_bench(place / "run" / "bench")
    write_flat(place / "run" / "flat")
    write_training(place / "run" / "fit")
    write_diagnosis(place / "run" / "diagnosis", MODEL)
    report([place / "run"], out=place / "page.html", pictures=place / "pictures")
    return place / "pictures"


NAMES = {"recall", "recall-gain", "streameval", "latency", "memory", "flat", "loss", "birth", "maps", "along"}


def test_each_is_there_in_light_and_dark_with_its_data(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{end}"
        for name in NAMES
        for end in ("-light.svg", "-dark.svg", "-light.png", "-dark.png", ".json" if name == "maps" else ".csv")
    }
    for name in NAMES:
        for theme, ground in GROUND.items():
            text = (folder / f"{name}-{theme}.svg").read_text()
            root = ET.fromstring(text)
            assert (
                root.tag.endswith("svg")
                and ground in text
                and GROUND["dark" if theme == "light" else "light"] not in text
            )
            assert "var(--" not in text and "#00000" not in text  # the page's variables and their stand-ins
            png = (folder / f"{name}-{theme}.png").read_bytes()
            assert png.startswith(b"\x89PNG") and struct.unpack(">I", png[16:20])[0] > 700


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_data_are_those_of_the_files(folder: Path) -> None:
    recall = json.loads((folder.parent / "run" / "answers" / "recall.json").read_text())["rows"]
    drawn = rows(folder / "recall.csv")
    assert [(r["cache"], float(r["distance"]), float(r["accuracy"])) for r in drawn] == [
        (r["cache"], r["distance"], r["accuracy"]) for r in recall
    ]
    birth = {(r["column"], int(r["step"])): float(r["value"]) for r in rows(folder / "birth.csv")}
    log = [line.split(",") for line in (folder.parent / "run" / "fit" / "metrics.csv").read_text().splitlines()]
    column = log[0].index("sinks/sink_heads")
    assert {step: value for (name, step), value in birth.items() if name == "sinks/sink_heads"} == {
        int(line[1]): float(line[column]) for line in log[1:] if line[column]
    }
    bench = json.loads((folder.parent / "run" / "bench" / "stream.json").read_text())["decoding"]
    assert {(r["method"], float(r["cache_size"])): float(r["median_ms"]) for r in rows(folder / "latency.csv")} == {
        (name, row["size"]): found["median_ms"] for row in bench for name, found in row["methods"].items()
    }
    assert len(rows(folder / "flat.csv")) == 100


def test_maps_are_means_over_heads(tmp_path: Path) -> None:
    write_diagnosis(tmp_path / "d", PLAIN)
    found = load_diagnosis(tmp_path / "d" / "diagnosis.json", "RUN", Sources())
    with np.load(tmp_path / "d" / "maps.npz") as arrays:
        by_hand = sum(arrays["probabilities"][:, head].astype(np.float64) for head in range(3)) / 3
    assert found.probabilities == pytest.approx(by_hand)
    assert np.isnan(found.logits[:, 0, 1]).all() and found.layers == [0, 1, 2, 5]


def test_streaming_is_drawn_over_the_other_methods_and_hides_none(tmp_path: Path) -> None:
    write_bench(tmp_path / "bench")
    sources = Sources()
    drawn = gallery(made_of(find([tmp_path / "bench"], sources), sources))
    for name in ("latency", "memory"):
        with style("light"):
            (axes,) = drawn[name].draw().axes
        lines = axes.get_lines()
        assert [line.get_marker() for line in lines] == ["D", "^", "s", "o"]
        assert lines[-1].get_fillstyle() == "none" and lines[-1].get_color() == palette("light")["one"]
        assert max(line.get_markersize() for line in lines[:-1]) < lines[-1].get_markersize()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB: what people without one kind of cone see
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(colour: str, kind: str) -> np.ndarray:
    """CIE Lab of a colour as people of a kind see it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLIND[kind]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_are_seen_and_told_apart_by_any_eye(theme: str) -> None:
    colours = palette(theme)  # type: ignore[arg-type]
    assert set(PAINTS) <= set(colours)
    assert min(contrast(colours[name], colours["paper"]) for name in (*TURN, "accent", "far")) >= 3
    for a, b in combinations(TURN[:4], 2):
        if (a in DASHES) == (b in DASHES) == False:  # noqa: E712
            assert min(np.linalg.norm(seen(colours[a], k) - seen(colours[b], k)) for k in BLIND) > 10, (a, b)


def test_pictures_that_exist_are_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine").write_text("mine")
    with pytest.raises(UserError, match="--pictures"):
        report([folder.parent / "run" / "flat"], out=tmp_path / "a.html", pictures=tmp_path / "pictures")
    assert (tmp_path / "pictures" / "mine").exists() and not (tmp_path / "a.html").exists()


def test_the_heat_map_is_the_table(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid", 600)
    sources = Sources()
    drawn = gallery(made_of(find([tmp_path / "grid" / "token-0"], sources), sources))["caches-tuned"].data
    record = json.loads((tmp_path / "grid" / "token-0" / "results.json").read_text())["rows"]
    caches = {row["name"]: row["ppl_full_cache"] for row in record}
    assert len(drawn) == 9
    for row in drawn:
        name = f"{row['sinks']}+{int(row['size']) - int(row['sinks'])}"
        assert float(row["ppl_full_cache"]) == pytest.approx(caches[name])
