"""Every command and every program of the README runs, on a tiny model where it names one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from family_models import FAMILIES, REFUSED
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

# What makes a command small enough for a test; it comes after the command's own options and so wins over them.
SMALL = {
    "prepare": ["--max_documents", "60"],
    "fit": ["--trainer.max_steps", "12", "--data.sequence_length", "64", "--trainer.limit_val_batches", "1",
            "--trainer.accelerator", "cpu"],
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks in `language` below a `tested` comment."""
    return re.findall(rf"<!-- tested[^>]*-->\n```{language}\n(.*?)```", README, flags=re.DOTALL)


def block_with(words: str) -> str:
    """The only tested block of commands that has these words."""
    (found,) = (each for each in blocks("bash") if words in each)
    return found.replace("\\\n", " ")


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.fixture(scope="module")
def commands_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Runs the README's verbs in order; the checkpoint is beside Lightning's logs."""
    place, verbs = tmp_path_factory.mktemp("readme"), []
    block = blocks("bash")[0]
    for line in block.strip().splitlines():
        program, verb, *options = shlex.split(line.replace("MODEL", str(model_folder)))
        found = sorted(place.glob("lightning_logs/*/checkpoints/step-*"))
        options = [str(found[-1]) if option == "CHECKPOINT" else option for option in options]
        done = run(["-m", "sinktrain.cli", verb, *options, *SMALL.get(verb, [])], place)
        allowed = (0, 1, 2) if verb == "verify" else (0,)  # a random model need not be proven
        assert program == "sinktrain" and done.returncode in allowed and "Traceback" not in done.stderr, done.stderr
        verbs.append(verb)
    return place, verbs


def test_the_commands(commands_run: tuple[Path, list[str]]) -> None:
    place, verbs = commands_run
    assert verbs == ["prepare", "fit", "evaluate", "verify", "export", "check-export", "gguf", "report"]
    for made in ("data/stdlib/manifest.json", "runs/eval/verdict.json", "runs/model/config.json", "runs/report.html"):
        assert (place / made).is_file()


def test_the_programs(commands_run: tuple[Path, list[str]], model_folder: Path) -> None:
    place, _ = commands_run
    programs = blocks("python")
    assert len(programs) == 3
    for program in programs:
        small = program.replace("MODEL", str(model_folder)).replace(
            "max_steps=100", "max_steps=12, limit_val_batches=1"
        )
        done = run(["-c", small.replace("sequence_length=512", "sequence_length=64")], place)
        assert done.returncode == 0, done.stderr
    assert float(re.search(r"tensor\((.*?)\)", done.stdout)[1]) > 1  # type: ignore[index]


def test_many_models_texts_and_caches(commands_run: tuple[Path, list[str]], model_folder: Path) -> None:
    place, _ = commands_run
    checkpoint = str(sorted(place.glob("lightning_logs/*/checkpoints/step-*"))[0])
    for line in block_with("--budget").strip().splitlines():
        _, verb, *options = shlex.split(line.replace("MODEL", str(model_folder)).replace("CHECKPOINT", checkpoint))
        done = run(["-m", "sinktrain.cli", verb, *options], place)
        assert done.returncode in ((0, 1, 2) if verb == "verify" else (0,)) and "Traceback" not in done.stderr, (
            done.stderr
        )
    assert len(json.loads((place / "runs/grid/grid.json").read_text())["cells"]) == 2
    assert (place / "runs/grid/verdict.json").is_file() and (place / "runs/grid.html").is_file()


def test_training_as_it_streams(commands_run: tuple[Path, list[str]], model_folder: Path) -> None:
    place, _ = commands_run
    _, verb, *options = shlex.split(block_with("--model.band").replace("MODEL", str(model_folder)))
    small = ["--trainer.max_steps", "3", "--model.optimizer.warmup_steps", "1", "--trainer.accelerator", "cpu"]
    done = run(["-m", "sinktrain.cli", verb, *options, *small, "--trainer.limit_val_batches", "1"], place)
    assert done.returncode == 0, done.stderr


def test_a_sink_for_a_pretrained_model(commands_run: tuple[Path, list[str]], model_folder: Path) -> None:
    """Each mode of tuning that the README shows, on the text that its first commands prepared."""
    place, _ = commands_run
    lines = block_with("--model.tuning.mode").strip().splitlines()
    for line in lines:
        _, verb, *options = shlex.split(line.replace("MODEL", str(model_folder)))
        few = ["--trainer.default_root_dir", "tuned", "--base_quality.tokens", "100", "--base_quality.size", "16"]
        done = run(["-m", "sinktrain.cli", verb, *options, *SMALL["fit"], *few], place)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert "trained 12 steps" in done.stdout and "PPL on stdlib, dense: " in done.stdout
    assert len(lines) >= 2


def test_training_from_scratch(tmp_path: Path) -> None:
    """Twelve steps of a model of 8 million parameters, with the sink that the README chose."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for line in block_with("--train_tokenizer").strip().splitlines():
        _, verb, *options = shlex.split(line)
        few = ["--data.global_batch_tokens", "256"] if verb == "fit" else []
        done = run(["-m", "sinktrain.cli", verb, *options, *SMALL[verb], *few], tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "trained 12 steps" in done.stdout


def with_template(model_folder: Path, folder: Path) -> Path:
    """A copy of the model that chats."""
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return folder


def test_chat_models(model_folder: Path, tmp_path: Path) -> None:
    """Twelve steps on conversations; the folder that comes out chats, with the sink in its template."""
    folder = with_template(model_folder, tmp_path / "model")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    talks = [
        [{"role": "user", "content": f"the cat {'sat ' * (i % 7)}"}, {"role": "assistant", "content": f"on a mat {i}"}]
        for i in range(60)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    said = []
    for line in block_with("--chat true").strip().splitlines():
        _, verb, *options = shlex.split(line.replace("MODEL", str(folder)))
        done = run(["-m", "sinktrain.cli", verb, *options, *SMALL[verb]], tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        said.append(done.stdout)
    assert said[0].count("--- sample") == 3 and "<sink>user: the cat" in said[0] and "assistant:⟦ on a mat" in said[0]
    assert "trained 12 steps" in said[1]
    (checkpoint,) = tmp_path.glob("lightning_logs/*/checkpoints/step-*")
    done = run(["-m", "sinktrain.cli", "export", "--checkpoint", str(checkpoint), "--out", "out"], tmp_path)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(talks[0], return_dict=False)
    assert tokenizer.decode(ids).startswith("<sink>user: the cat") and ids.count(ids[0]) == 1


# For the README's commands that a shell runs: what makes them small, before their own options.
IN_A_TERMINAL = {
    "generate": "--max_tokens 8",
    "chat": "--max_tokens 8",
    "bench stream": "--sizes '16 32' --seconds 0.02 --rounds 2 --tokens 2 --model.device cpu",
}


def test_the_commands_in_a_terminal(model_folder: Path, tmp_path: Path) -> None:
    folder = with_template(model_folder, tmp_path / "model")
    (tmp_path / "start.txt").write_text("the cat sat")
    block = block_with("bench stream")
    for line in block.strip().splitlines():
        verb = next(verb for verb in IN_A_TERMINAL if f"sinktrain {verb} " in line)
        command = line.split("  #")[0].replace("MODEL", str(folder))
        command = command.replace(
            f"sinktrain {verb}", f"{sys.executable} -m sinktrain.cli {verb} {IN_A_TERMINAL[verb]}"
        )
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, command + done.stderr
    assert (tmp_path / "more.txt").stat().st_size > 0 and (tmp_path / "runs/bench/stream.svg").is_file()


def test_the_hand_written_program_has_five_lines() -> None:
    by_hand = [program for program in blocks("python") if "trainer.fit" in program]
    assert len(by_hand) == 1 and len([line for line in by_hand[0].splitlines() if line.strip()]) == 5


def test_the_two_commands_and_what_ci_calls() -> None:
    for command in re.findall(r"^\./(scripts/\w+\.sh)$", README, flags=re.MULTILINE):
        assert os.access(ROOT / command, os.X_OK)
    assert (ROOT / ".ci/run").read_text().strip().endswith("exec bash scripts/test.sh")


def test_the_families_table_is_that_of_the_tests() -> None:
    """Its rows, and that no figure in it is above what the tests hold each family to."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in README.splitlines() if line[:1] == "|"]
    table = {name: cells for name, *cells in rows if name in {**FAMILIES, **REFUSED}}
    assert set(table) == {**FAMILIES, **REFUSED}.keys()
    for name in FAMILIES:
        exact = [float(cell) for cell in table[name][1:] if cell != "not compared"]
        assert exact and max(exact) <= 1e-5
    assert all(table[name][0].startswith("refused: ") for name in REFUSED)


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:scripts|recipes|configs|sinktrain)/[\w./]+)`", README)
    named += re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists() or not (ROOT / name).stat().st_size] == []


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path) -> None:
    """From a copy of the committed files; about 12 minutes, and the model's package must be within reach."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    done = subprocess.run(["./scripts/quickstart.sh"], cwd=tmp_path / "clone", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "clone/runs/quickstart/report.html").is_file()
    assert "roven: on 8,192 tokens" in done.stdout  # Proven or Not proven: as found
