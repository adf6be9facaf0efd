"""The model card: metadata as the hub's client reads it, code that runs, figures that were measured."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from test_export import trained_checkpoint

from sinktrain.cli import main
from sinktrain.data import HubStream
from sinktrain.export.card import Findings, model_card
from sinktrain.export.engines import other_engines
from sinktrain.sinks import SinkConfig
from sinktrain.training.checkpoints import open_checkpoint, run_record


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, prepared_folder: Path) -> Path:
    """What `fit`, `evaluate`, `verify` and `export` make of each other's."""
    place = tmp_path_factory.mktemp("card")
    fit = [
        "fit", "--model.name", str(model_folder), "--data.path", str(prepared_folder), "--data.sequence_length", "32",
        "--data.batch_size", "2", "--trainer.max_steps", "3", "--trainer.logger", "false", "--trainer.accelerator",
        "cpu", "--trainer.default_root_dir", str(place), "--model.optimizer.warmup_steps", "1",
        "--checkpoints.folder", str(place / "kept"), "--base_quality.tokens", "0", "--trainer.limit_val_batches", "0",
    ]  # fmt: skip
    assert main(fit) == 0
    evaluate = ["evaluate", "--model.name", str(place / "kept"), "--text", str(prepared_folder), "--tokens", "120",
                "--caches", "0+16 1+15 4+12", "--recompute", "60", "--out", str(place / "found")]  # fmt: skip
    assert main(evaluate) == 0
    main(["verify", str(place / "found"), "--cache", "1+15", "--against", "4+12"])
    verdict = str(place / "found" / "verdict.json")
    assert main(["export", str(place / "kept"), str(place / "model"), "--verdict", verdict]) == 0
    return place / "model"


def test_metadata(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert "attention-sink" in data["tags"] and "base_model" not in data  # it was a folder, and none of the hub


def test_it_says_what_was_found(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    results = json.loads((exported.parent / "found" / "results.json").read_text())
    verdict = json.loads((exported.parent / "found" / "verdict.json").read_text())
    for row in results["rows"]:
        assert re.search(
            rf"\| {re.escape(row['name'])} \| {row['tokens_full_cache']} \| {row['ppl_full_cache']:.3f} \|", card
        )
    for pair in verdict["comparisons"]:
        assert f"{pair['difference']:+.4f} | {pair['interval'][0]:+.4f} to {pair['interval'][1]:+.4f}" in card
    assert verdict["sentences"][1] in card
    assert (exported / "caches.png").read_bytes()[:4] == b"\x89PNG" and "![Perplexity by cache](caches.png)" in card
    assert json.loads((exported / "sinktrain.json").read_text())["verdict"]["comparisons"] == verdict["comparisons"]


def test_it_says_how_it_was_trained_and_not_where(exported: Path, model_folder: Path, prepared_folder: Path) -> None:
    card = (exported / "README.md").read_text()
    for cell in (
        f"| text | `{prepared_folder.name}` |", "| samples | 32 positions, packed by `chunk` |",
        "| steps | 3 of 2 samples |", "| trained | `full`, distillation 0 |", "| attention | full |",
    ):  # fmt: skip
        assert cell in card, cell
    for text in (card, (exported / "sinktrain.json").read_text()):
        assert str(model_folder.parent) not in text and str(prepared_folder) not in text
    assert f"tokens of {prepared_folder.name}, " in card


def test_its_five_lines_run(exported: Path) -> None:
    """As they stand there, in the folder that holds the export; but for how much is generated."""
    code = re.search(r"## Stream with it\n\n```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert code is not None and len(code[1].strip().splitlines()) == 5
    program = 'import sys\nsys.modules["sinktrain"] = None\n' + code[1].replace("2000", "60")
    done = subprocess.run([sys.executable, "-c", program], cwd=exported.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<sink>Once upon a time" in done.stdout


def card_with(exported: Path, kept: bool = False, **changes: dict[str, Any]) -> str:
    """The card of the same checkpoint, had its run been another."""
    checkpoint = exported.parent / "kept"
    trained, _ = open_checkpoint(checkpoint)
    run = copy.deepcopy(run_record(checkpoint, "--checkpoint"))
    assert run is not None
    for part, fields in changes.items():
        (run["run"] if part == "run" else run["config"][part]).update(fields)
    verdict = json.loads((exported.parent / "found" / "verdict.json").read_text())
    return model_card(trained, "model", "1+15", Findings(verdict, None, run), kept)


def test_the_text_of_a_stream_is_what_it_was_trained_on(exported: Path) -> None:
    stream = dataclasses.asdict(HubStream("someone/much-text"))
    assert "| text | `someone/much-text` |" in card_with(exported, data={"stream": stream, "path": None})
    for validated in ({"path": "little"}, {"path": None, "sources": {"little": 1.0}}):
        card = card_with(exported, data={"stream": stream, **validated})
        assert "| text | `someone/much-text` |" in card and "little" not in card


def test_the_steps_are_those_of_the_checkpoint(exported: Path) -> None:
    assert "| steps | 3 of 10,000, of 2 samples |" in card_with(exported, trainer={"max_steps": 10_000})
    assert "| steps | 3 of 2 samples |" in card_with(exported, trainer={"max_steps": -1})


def test_the_base_is_of_a_hub_or_not_named(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """runs/base looks like one of a hub: it is none if it is a folder here, or where the run began."""
    model = {"name": "runs/base"}
    assert "base_model: runs/base" in card_with(exported, model=model)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert "base_model" not in card_with(exported, model=model, run={"folder": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in card_with(exported, model=model)


def test_a_verdict_on_a_model_whose_adapters_are_beside_it(exported: Path) -> None:
    assert "Judged with its adapters." in card_with(exported, kept=True)
    assert "Judged with" not in card_with(exported)


@pytest.mark.parametrize("what", ["model", "text"])
def test_a_verdict_beside_the_results_of_another(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    found = shutil.copytree(exported.parent / "found", tmp_path / "found")
    verdict = json.loads((found / "verdict.json").read_text())
    (found / "verdict.json").write_text(json.dumps({**verdict, what: "another"}))
    arguments = ["export", str(exported.parent / "kept"), str(tmp_path / "model")]
    assert main([*arguments, "--verdict", str(found / "verdict.json")]) == 2
    err = capsys.readouterr().err
    assert f"is of the {what} another, and the results beside it of" in err and err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_without_record_and_verdict(model_folder: Path, prepared_folder: Path, tmp_path: Path) -> None:
    _, checkpoint = trained_checkpoint(model_folder, prepared_folder, tmp_path, SinkConfig(count=2))
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Not judged." in card and "The checkpoint has no record of it." in card and "which keeps the 2 sinks" in card
    assert "llama.cpp" not in card.partition("text-generation-webui")[0].rpartition("## Other engines")[2]


@pytest.mark.parametrize(
    ("kind", "sinks", "there", "absent"),
    [
        ("token", 1, ['"attention_sink_size": 1', "sink_token_length=1", "sinktrain gguf", "[1024]"], "granite_swa"),
        ("token", 2, ['"attention_sink_size": 2'], "sinktrain gguf"),
        ("logit", 0, ["granite_swa"], "sink_token_length"),
    ],
)  # fmt: skip
def test_other_engines(kind: str, sinks: int, there: list[str], absent: str) -> None:
    section: Any = other_engines(kind, sinks, f"{sinks}+{1024 - sinks}")
    assert all(text in section for text in there) and absent not in section
    assert other_engines("none", 0, "4+1020") == ""
    for row in section.splitlines():
        if any(engine in row for engine in ("MLC", "TensorRT", "webui", "SGLang", "all others")):
            assert row.endswith("| not run here |")
        elif "vLLM" in row or "--llama_cpp CHECKOUT" in row:
            assert row.partition("| where ")[2], "its tests are skipped where it is not set up"
