"""The verb `verify` on single results and on grids: sentences, table, JSON and exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import some_text
from test_verdict import MARGIN, made_up

import sinktrain.evaluation.results as results_module
from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.evaluation.results import Results
from sinktrain.evaluation.verify import verify
from sinktrain.reporting.sources import Sources
from sinktrain.reporting.verdict import load_verdict

SCHEMA = json.loads(Path(results_module.__file__).with_name("verdict.schema.json").read_text())
Stored = dict[str, Results]


def named(model: str, text: str = "book", sha256: str = "s", **truth: Any) -> Results:
    """Made-up results of a model, each with noise of its own."""
    results = made_up(**truth)
    results.record["model"] = {**results.record["model"], "name": f"/models/{model}", "label": model}
    results.record["text"] = {**results.record["text"], "name": text, "sha256": sha256}
    shift = 0.01 * np.random.default_rng(sum(map(ord, model))).standard_normal(len(results.documents))
    results.nll["1+31"] = results.nll["1+31"] + shift - shift.mean()
    return results


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a grid folder of cells (group, seed, results), whose results are read from memory."""

    def make(cells: list[tuple[str, int | None, Results]]) -> Path:
        stored: Stored = {f"cell{index}": results for index, (_, _, results) in enumerate(cells)}
        entries = [
            {"model": results.record["model"]["name"], "group": group, "seed": seed,
             "text": results.record["text"]["name"], "folder": f"cell{index}"}
            for index, (group, seed, results) in enumerate(cells)
        ]  # fmt: skip
        record = {"schema": 2, "kind": "grid", "command": "sinktrain evaluate", "cells": entries}
        (tmp_path / "grid.json").write_text(json.dumps(record))
        monkeypatch.setattr(results_module, "read_results", lambda path, option: stored[path.name])
        return tmp_path

    return make


def judged(folder: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    status = verify(folder, cache="1+31", against="4+28", resamples=500, **options)
    record: dict[str, Any] = json.loads((folder / "verdict.json").read_text())
    described(record, SCHEMA["$defs"]["verdict"])
    return status, record


def described(value: Any, schema: dict[str, Any]) -> None:
    """A small reading of JSON Schema: every field there is, is described, and every required one is there."""
    if "anyOf" in schema:
        schema = schema["anyOf"][value is None]
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, dict):
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), set(value) ^ set(schema["required"])
        for key, item in value.items():
            assert "description" in schema["properties"][key] or "$ref" in schema["properties"][key]
            described(item, schema["properties"][key])
    elif isinstance(value, list):
        for item in value:
            described(item, schema["items"])
    elif "enum" in schema or "const" in schema:
        assert value in schema.get("enum", [schema.get("const")])
    else:
        types = {"number": (int, float), "integer": int, "string": str, "boolean": bool, "null": type(None)}
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, types[name]) for name in allowed), (value, schema)  # type: ignore[arg-type]


def test_seeds_of_a_group_are_one_verdict(grid: Any) -> None:
    folder = grid([("token", seed, named(f"token-{seed}")) for seed in range(3)])
    status, record = judged(folder)
    assert status == 0 and record["statement"] == "proven" and record["verdicts"] == []
    assert record["model"] == "token" and record["models"] == ["token-0", "token-1", "token-2"]
    assert record["comparisons"][0]["seeds"] == 3 and record["comparisons"][0]["degrees_of_freedom"] >= 2
    assert "for 3 seeds of token" in record["sentences"][0]
    assert record["p_holm"] == record["p_value"] <= 0.05


def test_seeds_that_disagree_are_not_proven(grid: Any) -> None:
    """Each of them is proven by itself, and three do not tell that the next one would be."""
    apart = {0: -0.012, 1: 0.0, 2: 0.008}
    for seed, one in apart.items():
        assert judged(grid([("token", seed, named(f"t{seed}", one=one, noise=0.01))]))[0] == 0
    status, record = judged(
        grid([("token", seed, named(f"t{seed}", one=one, noise=0.01)) for seed, one in apart.items()])
    )
    assert status == 1 and record["comparisons"][0]["tokens_wanted"] is None
    assert "3 seeds cannot tell from 0 (more seeds could, more text could not)" in record["sentences"][1]


def test_a_grid_has_a_verdict_for_each_group_and_text(grid: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [("token", None, named("t", text)) for text in ("book", "code")]
    folder = grid([*cells, ("none", None, named("n", "book", one=0.05))])
    status, record = judged(folder)
    assert status == 1 and record["statement"] == "not proven"
    assert [each["statement"] for each in record["verdicts"]] == ["proven", "proven", "not proven"]
    assert record["model"] == "token, none" and record["text"] == "book, code" and len(record["comparisons"]) == 6
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == record["sentences"] and len(record["sentences"]) == 3
    assert "not proven for none on book" in said[0] and "proven for token on book; token on code" in said[0]
    assert sum(line.split()[-1] in ("yes", "no") for line in said) == 9
    shown = {line.split()[-2] for line in said if line.split()[-1] in ("yes", "no")}
    assert shown == {"-", *(f"{verdict['p_holm']:.4f}" for verdict in record["verdicts"])}
    assert judged(folder, groups="token")[0] == 0


def test_holm_takes_back_what_one_of_many_shows_by_chance(grid: Any) -> None:
    """A verdict with p just below 5%: proven alone, and not among five."""
    close = next(
        found
        for noise in np.linspace(0.16, 0.26, 11)
        if 0.02 < judged(grid([("a", None, found := named("m0", noise=noise))]))[1]["p_value"] < 0.05
    )
    assert judged(grid([("a", None, close)]))[0] == 0
    others = [(f"g{index}", None, named(f"m{index}", noise=0.3)) for index in range(4)]
    status, record = judged(grid([("a", None, close), *others]))
    (first, *_) = record["verdicts"]
    assert status == 1 and first["statement"] == "not proven" and first["p_holm"] > 0.05 > first["p_value"]
    assert "after Holm's correction" in first["sentences"][0]


def test_resamples_too_few_for_any_proof_are_refused(grid: Any) -> None:
    """The smallest p of 100 draws is 1/101, and six times that is above 5%; a verdict over seeds draws nothing."""
    cells = [(f"g{index}", None, named(f"m{index}")) for index in range(5)]
    options = {"cache": "1+31", "against": "4+28", "resamples": 100}
    over_seeds = [("seeds", seed, named(f"s{seed}")) for seed in (0, 1)]
    assert verify(grid([*cells, *over_seeds]), **options) == 0  # six, of which five are the bootstrap's
    with pytest.raises(UserError, match=r"--resamples 100: too few for 6 verdicts.*give 120 or more"):
        verify(grid([*cells, ("g5", None, named("m5"))]), **options)
    assert verify(grid([*cells, ("g5", None, named("m5"))]), **{**options, "resamples": 120}) == 0


def test_several_caches_and_several_to_compare_with(tmp_path: Path, grid: Any) -> None:
    results = named("m")
    results.nll["2+30"] = results.nll["1+31"]
    folder = grid([("m", None, results)])
    assert verify(folder, cache="1+31 2+30", against="2+30,4+28", resamples=200) == 0
    record = json.loads((folder / "verdict.json").read_text())
    pairs = [[pair["b"] for pair in verdict["comparisons"]] for verdict in record["verdicts"]]
    assert pairs == [["2+30", "4+28", "recompute"], ["4+28", "recompute"]]
    assert "m on book with 2+30" in record["sentences"][0]


def test_caches_of_several_sizes_are_each_compared_with_their_own(grid: Any) -> None:
    results = named("m")
    results.record["cache_size"] = 64
    more = {"1+63": results.nll["1+31"], "4+60": results.nll["4+28"], "recompute 32": results.nll["recompute"]}
    results.nll.update(more)
    folder = grid([("m", None, results)])
    assert verify(folder, cache="1+31 1+63", against="4+28 4+60", resamples=200) == 0
    record = json.loads((folder / "verdict.json").read_text())
    pairs = [[(pair["a"], pair["b"]) for pair in verdict["comparisons"]] for verdict in record["verdicts"]]
    assert pairs == [[("1+31", "4+28"), ("1+31", "recompute 32")], [("1+63", "4+60"), ("1+63", "recompute")]]
    assert record["cache_size"] == 64


def test_what_evaluate_writes_is_judged(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real grid of one tiny model and two texts, the second with a line break of documents in it."""
    for name, text in (("one", some_text(2500, 0)), ("two", "\n\f\n".join(some_text(100, s) for s in range(25)))):
        (tmp_path / f"{name}.txt").write_text(text)
    texts = [str(tmp_path / f"{name}.txt") for name in ("one", "two")]
    options = ["--model.name", str(model_folder), "--text", *texts, "--out", str(tmp_path / "out"), "--tokens", "600"]
    small = ["--caches", "0+16 1+15 4+12", "--recompute", "220", "--attention", "false"]
    assert main(["evaluate", *options, *small]) == 0
    cells = json.loads((tmp_path / "out/grid.json").read_text())["cells"]
    for folder, count in ((tmp_path / "out", 2), (tmp_path / "out" / cells[1]["folder"], 0)):
        status = main(["verify", "--results", str(folder), "--cache", "1+15", "--against", "4+12"])
        record = json.loads((folder / "verdict.json").read_text())
        described(record, SCHEMA["$defs"]["verdict"])
        assert len(record["verdicts"]) == count and status in (0, 1)
        assert all(sentence in capsys.readouterr().out for sentence in record["sentences"][:1])
    assert {each["text"] for each in json.loads((tmp_path / "out/verdict.json").read_text())["verdicts"]} == set(texts)


def test_what_could_not_be_judged_is_said_and_is_2(grid: Any) -> None:
    broken = named("n")
    broken.nll["1+31"][[3000, 3001]] = np.nan
    status, record = judged(grid([("token", None, named("t")), ("none", None, broken)]))
    assert status == 2 and record["p_holm"] is None and record["verdicts"][0]["statement"] == "proven"
    assert "2 NLLs of 1+31 are not finite" in record["verdicts"][1]["sentences"][0]


def test_equivalence_asks_for_both_sides(grid: Any) -> None:
    status, record = judged(grid([("m", None, named("m", one=-0.05))]))
    better, same = record["comparisons"]
    assert status == 0 and better["holds"] and not better["equivalent"] and better["p_equivalence"] > 0.5
    assert same["equivalent"] and same["p_equivalence"] <= 0.05


def test_documents_are_used_and_said(grid: Any) -> None:
    results = named("m")
    results.documents[:] = np.arange(len(results.documents)) // 100
    pair = judged(grid([("m", None, results)]))[1]["comparisons"][0]
    assert pair["resampled"] == "documents" and pair["documents"] == 60 and "60 documents" in pair["why_resampled"]


@pytest.mark.parametrize(
    ("cells", "options", "words"),
    [
        ([("a", 0, named("x")), ("a", 0, named("y"))], {}, "have the same seed"),
        ([("a", 0, named("x")), ("a", 1, named("y", sha256="other"))], {}, "not measured on the same tokens"),
        ([("a", 0, named("x"))], {"groups": "b"}, "--groups b: the grid .* holds a"),
    ],
)  # fmt: skip
def test_mistakes_are_a_sentence(cells: Any, options: dict[str, Any], words: str, grid: Any) -> None:
    with pytest.raises(UserError, match=words):
        judged(grid(cells), **options)


@pytest.mark.parametrize(
    "text", ["{", *(f'{{"schema": {rest}}}' for rest in ("9", '2, "cells": [1]', '2, "cells": []'))]
)
def test_a_grid_that_is_none_is_a_sentence(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.json").write_text(text)
    assert main(["verify", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and str(tmp_path) in said


def test_real_outputs_are_as_the_schema_says(grid: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for cells in ([("token", None, named("t"))], [(group, None, named(group)) for group in "ab"]):
        _, record = judged(grid(cells))
        validator.validate(record)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**record, "statement": "perhaps"})
    empty = named("e")
    del empty.nll["recompute"], empty.nll["0+32"]
    _, record = judged(grid([("e", None, empty)]))
    validator.validate(record)


def test_the_words_of_power(grid: Any) -> None:
    record = judged(grid([("m", None, named("m"))]))[1]
    pair = record["comparisons"][0]
    seen = 100 * np.expm1(pair["smallest_difference"])
    assert f"the smallest difference that could have been seen is {seen:.2f}%" in record["sentences"][1]
    assert 0 < pair["smallest_difference"] < MARGIN and pair["tokens_wanted"] < pair["tokens"]


def test_the_file_says_which_command_wrote_it(grid: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = grid([("m", None, named("m"))])
    words = ["verify", "--results", str(folder), "--cache", "1+31", "--against", "4+28", "--resamples", "500"]
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/sinktrain", *words])
    main(words)
    assert json.loads((folder / "verdict.json").read_text())["command"] == " ".join(["sinktrain", *words])
    sources = Sources()
    load_verdict(folder / "verdict.json", sources=sources)
    assert sources.found[0].command == " ".join(["sinktrain", *words])  # and so the page can be traced to it
