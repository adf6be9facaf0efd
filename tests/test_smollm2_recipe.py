"""The scripts of recipes/smollm2, on a tiny model with sinks and without, against numbers made in another way."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import some_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain.cli import main as sinktrain
from sinktrain.data.prepared import PreparedText
from sinktrain.evaluation.results import read_results
from sinktrain.evaluation.subject import ModelOptions, load_subject
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens
from sinktrain.streaming import CacheSpec, reference_nll

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "recipes" / "smollm2"))

import compare  # noqa: E402
import heads  # noqa: E402
import streams  # noqa: E402
import table  # noqa: E402
import timed  # noqa: E402
from first_tokens import behind_tokens, from_places  # noqa: E402
from spread import compare_spreads, sd_interval, spread  # noqa: E402

from sinktrain.base.errors import UserError  # noqa: E402

SINK = 300
"""The id of the sink: the tokenizer of the tiny models has 300 entries."""
TOKENS, SIZE, PLACES = 40, 8, 6


@pytest.fixture(scope="module")
def models(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model, and the same with a sink, as exported."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = SinkConfig(init="normal")
    grow_embedding(model, len(tokenizer) + 1, add_sink_tokens(tokenizer, config), config)
    folder = tmp_path_factory.mktemp("sink")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"base": model_folder, "sink_only": folder}


def measured(folder: Path, text: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["--model", str(folder), "--text", str(text), "--out", str(out), "--streams", str(PLACES),
                 "--tokens", str(TOKENS), "--cache", f"1+{SIZE - 1}", "--dtype", "float32", "--batch", "4", "--chunk",
                 "7"]  # fmt: skip
    assert streams.main([*arguments, *more]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def records(
    models: dict[str, Path], prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("streams")
    base = measured(models["base"], prepared_folder, folder / "base.json")
    against = ["--against", str(folder / "base.json")]
    return {"base": base, "sink_only": measured(models["sink_only"], prepared_folder, folder / "sink.json", *against)}


@pytest.mark.parametrize("name", ["base", "sink_only"])
def test_streams_are_those_of_the_reference(
    name: str, records: dict[str, dict[str, Any]], models: dict[str, Path], prepared_folder: Path
) -> None:
    """Token by token, over the tokens that a model without a sink predicts with a full cache, whatever the model."""
    text = torch.tensor(PreparedText(prepared_folder).tokens("validation").astype("int64"))
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32).eval()
    sinks = [SINK] if name == "sink_only" else []
    for experiment, found in records[name]["streams"].items():
        for stream in found:
            place = stream["place"]
            assert (place is None) == (experiment == "first_tokens")
            tail = text[: TOKENS - 1] if place is None else text[place + 1 : place + TOKENS]
            if place is not None:
                assert stream["first"] == int(text[place])
            whole = torch.cat((torch.tensor([*sinks, stream["first"]]), tail))
            by_token = reference_nll(model, whole, CacheSpec(1, SIZE - 1))[-(TOKENS - SIZE - 1) :]
            assert stream["nll"] == pytest.approx(float(by_token.mean()), abs=1e-4)
    assert records[name]["counted"] == TOKENS - SIZE - 1


def test_streams_begin_differently_and_alike_in_both_models(records: dict[str, dict[str, Any]]) -> None:
    base, sink = ({k: [(s["place"], s["first"], s["special"]) for s in v] for k, v in records[name]["streams"].items()}
                  for name in ("base", "sink_only"))  # fmt: skip
    assert base == sink
    places = [place for place, _, _ in base["places"]]
    assert len(places) == PLACES and min(np.diff(places)) >= TOKENS  # none has text of another
    for name in base:
        tokens = [token for _, token, _ in base[name]]
        assert len(set(tokens)) == len(tokens) and SINK not in tokens
    special = {token for _, token, special in base["first_tokens"] if special}
    assert len(base["first_tokens"]) == PLACES + len(special) and 0 in special  # <|endoftext|>
    pieces = {stream["piece"] for stream in records["base"]["streams"]["first_tokens"] if stream["special"]}
    assert pieces == {"<|endoftext|>", "\n"}


def test_the_spread_is_that_of_the_sample(records: dict[str, dict[str, Any]]) -> None:
    for record in records.values():
        for name, found in record["spread"].items():
            nll = np.array([s["nll"] for s in record["streams"][name] if not s["special"]])
            assert found["streams"] == len(nll) == PLACES
            assert found["sd"] == pytest.approx(nll.std(ddof=1)) and found["sd"] > 0
            assert found["sd_ppl"] == pytest.approx(np.exp(nll).std(ddof=1))
            assert (found["lowest"], found["highest"]) == pytest.approx((np.exp(nll.min()), np.exp(nll.max())))
            low, high = found["sd_interval"]
            assert 0 < low < found["sd"] < high


def test_against_compares_stream_by_stream(
    records: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = records["sink_only"]["against"]["first_tokens"]
    by_token = [{s["first"]: s["nll"] for s in records[name]["streams"]["first_tokens"] if not s["special"]}
                for name in ("base", "sink_only")]  # fmt: skip
    a, b = (np.array([each[token] for token in by_token[0]]) for each in by_token)
    assert found["ratio"] == pytest.approx(b.std() / a.std())
    assert found["difference"] == pytest.approx((b - a).mean())
    assert found["ratio_interval"][0] < found["ratio"] < found["ratio_interval"][1]
    shuffled = json.loads(json.dumps(records["base"]))
    shuffled["streams"]["first_tokens"].reverse()
    for name, record in (("base", shuffled), ("sink", records["sink_only"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    assert streams.main(["--out", str(tmp_path / "sink.json"), "--against", str(tmp_path / "base.json")]) == 0
    assert f"{found['ratio']:.3f} times as large" in capsys.readouterr().out
    other = {**shuffled, "settings": {**shuffled["settings"], "cache": "1+5"}}
    (tmp_path / "base.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"--against .*settings cache: 1\+5 there, 1\+7 here"):
        streams.main(["--out", str(tmp_path / "sink.json"), "--against", str(tmp_path / "base.json")])


@pytest.mark.parametrize(("more", "words"), [
    (["--cache", "dense"], "--tokens"), (["--tokens", "9"], "--tokens 9"), (["--streams", "1"], "--streams 1"),
    (["--streams", "9", "--tokens", "8000"], r"--streams x \(--tokens"),
    (["--text", "./absent"], "--text")])  # fmt: skip
def test_streams_that_cannot_be(
    more: list[str], words: str, models: dict[str, Path], prepared_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(UserError, match=words):
        measured(models["base"], prepared_folder, out, *more)
    out.write_text("{}")
    with pytest.raises(UserError, match=r"--out .*exists"):
        measured(models["base"], prepared_folder, out)
    with pytest.raises(UserError, match=r"--out .*is no file of"):
        streams.main(["--out", str(out)])


def test_one_experiment_alone(
    records: dict[str, dict[str, Any]], models: dict[str, Path], prepared_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.json").write_text(json.dumps(records["base"]))
    more = ["--experiments", "places", "--against", str(tmp_path / "base.json")]
    found = measured(models["sink_only"], prepared_folder, tmp_path / "out.json", *more)
    assert found["spread"] == {"places": records["sink_only"]["spread"]["places"]}
    assert found["against"]["places"] == records["sink_only"]["against"]["places"]
    assert "first_tokens" not in found["against"]


def test_texts_of_too_few_words(models: dict[str, Path]) -> None:
    text = torch.tensor([5, 6, 7] * 21)
    found = from_places(text, 3, 13, 8)  # every 21st token is a 5, so that the second and the third begin later
    assert [start.place for start in found] == [0, 22, 44] and [int(start.tokens[0]) for start in found] == [5, 6, 7]
    assert all(len(start.tokens) == 13 for start in found)
    with pytest.raises(UserError, match=r"--streams 4: .* 3 different"):
        from_places(text, 4, 7, 8)
    subject = load_subject(ModelOptions(str(models["sink_only"])))
    with pytest.raises(UserError, match=r"--streams 4: .* 3 different"):
        behind_tokens(subject, text, 4, 12, seed=0)


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_intervals_of_a_standard_deviation_hold_it(kind: str) -> None:
    rng = np.random.default_rng(0)
    true = 2.0 if kind == "normal" else 2.0 * math.sqrt(2)
    inside = 0
    for _ in range(2000):
        low, high = sd_interval(getattr(rng, kind)(1.0, 2.0, size=50))
        inside += low < true < high
    assert 0.92 < inside / 2000 < 0.975
    assert sd_interval(np.ones(50)) == (0.0, 0.0) and sd_interval(np.arange(5.0)) == (0.0, math.inf)


def test_a_difference_of_spreads_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(1)
    chances, inside = [], 0
    for trial in range(200):
        text = rng.normal(size=40)  # which both models share
        a, b = (text + 5 + rng.normal(scale=0.5, size=40) for _ in range(2))
        found = compare_spreads(a, b - 3, resamples=400, seed=trial)
        chances.append(found["p"])
        inside += found["ratio_interval"][0] < 1 < found["ratio_interval"][1]
    assert 0.02 < np.mean(np.array(chances) <= 0.05) < 0.1 and 0.4 < np.mean(chances) < 0.6
    assert 0.88 < inside / 200 < 0.985
    text = rng.normal(size=40)
    found = compare_spreads(text, 0.5 * text + rng.normal(scale=0.1, size=40))
    assert found["p"] < 1e-3 and 0.4 < found["ratio_interval"][0] < found["ratio"] < found["ratio_interval"][1] < 0.65
    assert spread(np.log(np.array([1.0, 2.0, 3.0])))["sd_ppl"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def runs(models: dict[str, Path], prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result folders of both models on a text, C = 8 and 16."""
    folder = tmp_path_factory.mktemp("runs")
    for mode, model in models.items():
        for size in (8, 16):
            caches = f"0+{size} 1+{size - 1} 4+{size - 4} dense"
            if mode == "base":
                caches = caches.replace("dense", f"2+{size - 2} dense")
            arguments = ["--model.name", str(model), "--text", str(prepared_folder), "--tokens", "160", "--caches",
                         caches, "--out", str(folder / f"{mode}-words-{size}"), "--recompute", "30"]  # fmt: skip
            assert sinktrain(["evaluate", *arguments]) == 0
    (folder / "times").mkdir()
    return folder


def cells(text: str) -> list[list[str]]:
    """The cells of every line of Markdown tables."""
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]


def start(cell: str) -> float:
    """The figure that a cell starts with."""
    return float(cell.split()[0].rstrip("%"))


def test_compare_pairs_tokens(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [runs / f"{mode}-words-8" for mode in ("base", "sink_only")]
    assert compare.main([str(folder) for folder in folders]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows[2:]] == ["0+8", "1+7", "4+4", "dense", "recompute"]  # A alone has 2+6
    a, b = (read_results(folder).nll for folder in folders)
    for row in rows[2:]:
        both = np.isfinite(a[row[0]]) & np.isfinite(b[row[0]]) & (np.arange(160) >= 9)  # token 9 finds 8 cached
        assert row[1] == str(both.sum())
        assert start(row[2]) == pytest.approx(np.exp(a[row[0]][both].mean()), abs=0.006)
        assert start(row[3]) == pytest.approx(np.exp(b[row[0]][both].mean()), abs=0.006)
        change = (b[row[0]] - a[row[0]])[both].mean()
        assert start(row[4]) == pytest.approx(100 * np.expm1(change), abs=0.006)
        assert row[4].endswith("*") == (row[4].count("+") in (0, 3))
    with pytest.raises(UserError, match="share no cache"):
        compare.table(read_results(folders[0]), argparse.Namespace(nll={"1+2": None}))  # type: ignore[arg-type]
    record = json.loads((folders[1] / "results.json").read_text())
    record["text"]["sha256"] = "0"
    with pytest.raises(UserError, match="not measured on the same tokens"):
        compare.check_same_text(read_results(folders[0]), argparse.Namespace(record=record), "a, b")  # type: ignore[arg-type]


def test_the_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = runs / "sink_only-words-8" / "verdict.json"
    verdict.write_text(json.dumps({"statement": "proven"}))
    assert timed.main(runs / "times" / "nothing.json", [sys.executable, "-c", "x = bytearray(300_000_000)"]) == 0
    assert table.main(["--runs", str(runs)]) == 0
    sections = dict(part.split("**\n\n", 1) for part in capsys.readouterr().out.split("\n**")[0:] if "**\n\n" in part)
    found = {title.strip("*").split(":")[0].split(",")[0]: cells(text) for title, text in sections.items()}
    ppl = {(row[0], row[1]): row[2:] for row in found["PPL of tokens with a full cache"][2:]}
    assert found["PPL of tokens with a full cache"][0] == ["model", "cache", "words, C = 8", "words, C = 16"]
    within = {(row[0], row[1]): row[2:] for row in found["The same tokens under two caches of one model"][2:]}
    change = {(row[0], row[1]): row[2:] for row in found["Against the base model"][2:]}
    assert {mode for mode, _ in ppl} == {"base", "sink_only"} and {mode for mode, _ in change} == {"sink_only"}
    for column, size in enumerate((8, 16)):
        names = {"0+C": f"0+{size}", "1+(C-1)": f"1+{size - 1}", "4+(C-4)": f"4+{size - 4}", "recompute": "recompute"}
        nll = {mode: read_results(runs / f"{mode}-words-{size}").nll for mode in ("base", "sink_only")}
        for mode, sinks in (("base", 0), ("sink_only", 1)):
            full = np.arange(160) + sinks - 1 >= size
            for name, cache in names.items():
                each = nll[mode][cache]
                assert start(ppl[mode, name][column]) == pytest.approx(np.exp(np.nanmean(each[full])), abs=0.006)
                less = np.nanmean((nll[mode][names["1+(C-1)"]] - each)[full])
                if name in ("4+(C-4)", "recompute"):
                    assert start(within[mode, f"1+(C-1) against {name}"][column]) == pytest.approx(
                        100 * np.expm1(less), abs=0.006
                    )
        both = (nll["sink_only"]["4+4" if size == 8 else "4+12"] - nll["base"]["4+4" if size == 8 else "4+12"])[
            size + 1 :
        ]
        assert start(change["sink_only", "4+(C-4)"][column]) == pytest.approx(100 * np.expm1(both.mean()), abs=0.006)
        dense = {(row[0], row[1]): row[2:] for row in found["Dense"][2:]}
        drift = np.nanmean(nll["sink_only"]["dense"] - nll["base"]["dense"])  # base does not predict the first token
        assert start(dense["base", "PPL"][column]) == pytest.approx(np.exp(np.nanmean(nll["base"]["dense"])), abs=0.006)
        assert start(dense["sink_only", "change from base"][column]) == pytest.approx(100 * np.expm1(drift), abs=0.006)
    assert ppl["base", "2+(C-2)"] and ("sink_only", "2+(C-2)") not in ppl
    attention = {(row[0], row[1]): row[2:] for row in found["Attention on the first position"][2:]}
    metric = read_results(runs / "sink_only-words-8").record["attention"]["sink_metric"]
    assert start(attention["sink_only", "words, C = 8"][0]) == pytest.approx(100 * metric, abs=0.06)
    assert attention["sink_only", "words, C = 8"][2] == "proven" and attention["base", "words, C = 8"][2] == ""
    (what, seconds, peak) = found["Wall time and memory"][2]
    assert what == "nothing" and float(seconds) < 60 and float(peak) > 0.28


def test_folders_that_are_missing_are_left_out(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sink_only-words-16").symlink_to(runs / "sink_only-words-16")
    (tmp_path / "lora-words-16").mkdir()
    assert table.main(["--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        "| sink_only | 1+(C-1) |" in said and "base" not in said.replace("change from base", "") and "lora" not in said
    )
    assert "Against the base" not in said and "Wall time" not in said
    with pytest.raises(UserError, match="--runs"):
        table.main(["--runs", str(tmp_path / "lora-words-16")])


@pytest.mark.parametrize("name", ["base", "sink_only"])
def test_heads_are_those_of_eager_attention(
    name: str, models: dict[str, Path], prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads.json"
    arguments = ["--models", str(models[name]), "--text", str(prepared_folder), "--out", str(out), "--tokens", "120"]
    assert heads.main([*arguments, "--length", "24", "--sequences", "5"]) == 0
    found = json.loads(out.read_text())["models"][str(models[name])]
    sinks = [SINK] if name == "sink_only" else []
    assert list(found) == [*["sink"][: len(sinks)], "text 1", "text 2"]
    text = torch.tensor(PreparedText(prepared_folder).tokens("validation")[:120].astype("int64"))
    width = 24 - len(sinks)
    starts = torch.linspace(0, 120 - width, 5).long().tolist()
    rows = torch.stack([torch.cat((torch.tensor(sinks, dtype=torch.long), text[s : s + width])) for s in starts])
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        weights = torch.stack(model(rows, output_attentions=True).attentions)  # (layers, B, H, T, T)
    for position, each in enumerate(found.values()):
        alpha = weights[..., position + 1 :, position].mean(dim=(1, 3))
        assert torch.allclose(torch.tensor(each["share"]), alpha, atol=1e-5)
        assert each["heads"] == pytest.approx(float((alpha > 0.3).float().mean()))
    rows_said = cells(capsys.readouterr().out)
    assert [row[0] for row in rows_said[2:]] == ["0", "1", "2", "all"]
    assert start(rows_said[-1][1]) == pytest.approx(np.mean(next(iter(found.values()))["share"]), abs=6e-4)
    with pytest.raises(UserError, match="--length"):
        heads.main([*arguments, "--length", "4"])


def test_a_command_that_fails_leaves_no_time(tmp_path: Path) -> None:
    assert timed.main(tmp_path / "x.json", [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert not (tmp_path / "x.json").exists()


def test_text_from_a_file(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(some_text(900, seed=3))
    found = measured(models["base"], tmp_path / "a.txt", tmp_path / "out.json")
    assert found["text"]["tokens"] == PLACES * (TOKENS + 64)


@pytest.mark.parametrize("arguments", [["compare.py", "nowhere", "there"], ["table.py", "--runs", "nowhere"],
                                       ["streams.py", "--out", "nowhere"]])  # fmt: skip
def test_a_mistake_is_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "recipes" / "smollm2" / arguments[0]), *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "nowhere" in done.stderr and done.stderr.count("\n") == 1


def shown(printed: str, value: float) -> bool:
    """Whether the README's figure is the page's value, as a number or as a change of PPL in percent."""
    value = 100 * math.expm1(min(value, 9)) if printed.startswith(("+", "-")) else value
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed.removeprefix("+")


def test_the_readme_says_what_the_page_says() -> None:
    """Every figure with an interval in the tables of "The evidence"."""
    folder = ROOT / "recipes" / "smollm2"
    text = (folder / "README.md").read_text().partition("## The evidence\n")[2].partition("\n## ")[0]
    figures = re.findall(r"\| ([+-]?[\d.]+)%? \(([+-]?[\d.]+) to ([+-]?[\d.]+)\)", text)
    assert len(figures) == 21
    page = re.findall(r'<data value="(-?[\d.e-]+)"', (folder / "report" / "index.html").read_text())
    values = [float(value) for value in page]
    triples = list(zip(values, values[1:], values[2:], strict=False))
    for figure in figures:
        assert any(all(map(shown, figure, triple)) for triple in triples), figure
