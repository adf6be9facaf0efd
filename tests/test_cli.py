"""The front door: help, configuration files, exit statuses, and mistakes told in one sentence."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sinktrain.cli import VERBS, main

ROOT = Path(__file__).parents[1]


def sinktrain(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sinktrain.cli", *arguments], capture_output=True, text=True, cwd=cwd)


def fit_options(model: Path, data: Path, runs: Path) -> list[str]:
    return [
        "fit", "--model.name", str(model), "--data.path", str(data), "--data.sequence_length", "32",
        "--data.batch_size", "2", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu",
        "--model.optimizer.warmup_steps", "1", "--trainer.default_root_dir", str(runs),
        "--trainer.limit_val_batches", "0", "--trainer.logger", "false",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_and_print_config_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "--print_config"):
        with pytest.raises(SystemExit) as end:
            main([verb, option])
        assert end.value.code == 0
    out = capsys.readouterr().out
    assert "Path to a configuration file" in out or "--config" in out
    assert len(out.splitlines()) > 15


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for verb in set(VERBS) - {"fit"}:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        text = capsys.readouterr().out
        assert "(type:" in text
        bare = re.findall(r"^  (--[\w.]+) \S+\s+\((?:required, )?type:", text, flags=re.MULTILINE)
        assert bare == [], f"{verb}: options without a word of help"


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from sinktrain.cli import main; main(['--help']); print([m for m in ('torch', 'numpy', " \
              "'transformers', 'lightning', 'jsonargparse', 'rich') if m in sys.modules])"  # fmt: skip
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "[]" and "usage: sinktrain" in found


def test_options_from_yaml_and_from_the_command_line_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model": {"name": "a", "dtype": "bfloat16"}, "text": "t", "out": "o", "tokens": 123}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    printed = []
    for arguments in (
        ["--config", str(tmp_path / "c.yaml")],
        ["--model.name", "a", "--model.dtype", "bfloat16", "--text", "t", "--out", "o", "--tokens", "123"],
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", *arguments, "--print_config"])
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0] == printed[1] and printed[0]["tokens"] == 123
    assert printed[0]["seed"] == 0  # what nobody gave has its default


FIT = "fit --model.name {model} --data.path {data} --data.sequence_length 32 --trainer.max_steps 3"
PREPARE = "prepare --tokenizer {model} --out {folder}/new --source {folder}"
EVALUATE = "evaluate --model.name {model} --text {data} --out {folder}/new --tokens 200"
MISTAKES = {
    "verb": ("train", "is not a verb"),
    "no such option": ("evaluate --modle.name x", "modle"),
    "type": (f"{EVALUATE} --tokens many", "tokens"),
    "no model": (f"{FIT} --model.name ./nowhere", "model.name ./nowhere"),
    "sink kind": (f"{FIT} --model.sink.kind magic", "sink.kind"),
    "sink count": (f"{FIT} --model.sink.count 0", "sink.count"),
    "length above the model's": (f"{FIT} --data.sequence_length 5000", "--data.sequence_length"),
    "length without room": (f"{FIT} --data.sequence_length 2", "--data.sequence_length"),
    "text shorter than a sample": (f"{FIT} --data.sequence_length 512 --data.path {{short}}", "--data.sequence_length"),
    "steps that cannot be": (f"{FIT} --trainer.accumulate_grad_batches 0", "accumulate_grad_batches"),
    "no checkpoint": (f"{FIT} --checkpoints.resume {{folder}}/none", "checkpoints.resume"),
    "not a checkpoint": (f"{FIT} --checkpoints.resume {{folder}}/short.txt", "checkpoints.resume"),
    "Lightning's own": (f"{FIT} --ckpt_path {{folder}}/short.txt", "--ckpt_path"),
    "one temporary checkpoint": (f"{FIT} --checkpoints.keep 1", "checkpoints.keep"),
    "the same batches": (f"{FIT} --trainer.limit_train_batches 2", "limit_train_batches"),
    "betas": (f"{FIT} --model.optimizer.betas [0.9,2.0]", "betas"),
    "package": (f"{FIT} --model.name package:a.b.c", "package:a.b.c"),
    "chunk": (f"{EVALUATE} --chunk -3", "--chunk"),
    "tokens": (f"{EVALUATE} --tokens -5", "--tokens"),
    "seed": (f"{EVALUATE} --seed -1", "--seed"),
    "resamples": ("verify --results {folder} --resamples 0", "--resamples"),
    "no data": (f"{FIT} --data.path {{folder}}/absent", "data.path"),
    "no file": (f"{PREPARE}/absent.txt", "--source"),
    "empty file": (f"{PREPARE}/empty.txt", "empty"),
    "not utf-8": (f"{PREPARE}/latin1.txt", "UTF-8"),
    "cache without recent tokens": (f"{EVALUATE} --caches 1+0", "--caches"),
    "not a cache": (f"{EVALUATE} --caches x", "--caches"),
    "not a result": ("verify --results {folder}", "--results"),
}
"""What people get wrong, and the words that must be in the answer."""


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_sentence(
    name: str, model_folder: Path, prepared_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    line, words = MISTAKES[name]
    (tmp_path / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("the cat sat\n\f\non a mat")
    main(
        ["prepare", "--source", f"{tmp_path}/short.txt", "--tokenizer", str(model_folder), "--out", f"{tmp_path}/short"]
    )
    monkeypatch.chdir(tmp_path)  # where logs would go
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    places = {"model": model_folder, "data": prepared_folder, "folder": tmp_path, "short": tmp_path / "short"}
    assert main(line.format(**places).split()) == 2
    err = capfd.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("sinktrain ")]
    assert len(told) == 1 and words in told[0] and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_sigterm_leaves_nothing_half_written(model_folder: Path, tmp_path: Path) -> None:
    arguments = ["prepare", "--source", "stdlib", "--tokenizer", str(model_folder), "--out", str(tmp_path / "new")]
    process = subprocess.Popen([sys.executable, "-m", "sinktrain.cli", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(tmp_path.glob(".new.draft/result/*")):
        time.sleep(0.02)  # until it has begun to write: a moment earlier the draft is empty, and taken up again
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    quiet = sinktrain("fit", "--model.name", "./nowhere", "--data.path", "x", cwd=tmp_path)
    loud = sinktrain("fit", "--model.name", "./nowhere", "--data.path", "x", "--debug", cwd=tmp_path)
    assert quiet.returncode == 2 and "Traceback" not in quiet.stderr
    assert loud.returncode != 0 and "Traceback" in loud.stderr


def test_fit_says_where_things_are_and_resumes(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = fit_options(model_folder, prepared_folder, tmp_path / "runs")
    kept = tmp_path / "kept"
    keep = ["--checkpoints.folder", str(kept)]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert main([*options, *keep]) == 0
    out = capsys.readouterr().out
    assert "trained 3 steps: train/loss" in out and f"checkpoint: {kept / 'step-000000003'}" in out
    assert main([*options, *keep, "--trainer.max_steps", "5"]) == 0
    out = capsys.readouterr().out
    assert f"going on from {kept / 'step-000000003'}, step 3" in out and "trained 5 steps" in out
    assert main([*options, *keep, "--trainer.max_steps", "5"]) == 0
    out = capsys.readouterr().out
    assert "trained 5 steps" in out and "nothing is left to do" in out and "step-000000005" in out
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert main([*options, *keep, "--checkpoints.resume", "never"]) == 2
    assert "checkpoints.resume is never" in capsys.readouterr().err
    assert main([*options, "--checkpoints.resume", str(kept / "step-000000003"), "--checkpoints.folder",
                 str(tmp_path / "other")]) == 0  # fmt: skip
    assert "going on from" in capsys.readouterr().out and not (tmp_path / "other").exists()


def test_a_run_without_checkpoints(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = fit_options(model_folder, prepared_folder, tmp_path / "runs")
    assert main([*options, "--trainer.enable_checkpointing", "false"]) == 0
    assert "checkpoint" not in capsys.readouterr().out and not list(tmp_path.rglob("step-*"))


YAML_FILES = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("recipes/**/*.yaml")])


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_is_parsed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verb that a file's first line names takes it and prints every setting of it back."""
    verb = re.match(r"# .*`sinktrain (\w+) ", path.read_text().splitlines()[0])
    assert verb is not None, "the first line says what the file is for and the command that takes it"
    with pytest.raises(SystemExit) as end:
        main([verb[1], "--config", str(path), "--print_config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert contains(printed, yaml.safe_load(path.read_text()))


def contains(whole: object, part: object) -> bool:
    """Whether every setting of `part` stands in `whole`."""
    if isinstance(part, dict):
        plain = {key.removesuffix("+"): value for key, value in part.items()}  # `callbacks+` adds to a list
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], plain[key]) for key in plain)
    if isinstance(part, list):
        return isinstance(whole, list) and all(map(contains, whole, part))
    return whole == part


def test_a_yaml_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {nam: x}")
    assert main(["fit", "--config", str(tmp_path / "c.yaml"), "--print_config"]) == 2
