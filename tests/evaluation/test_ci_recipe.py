"""recipes/ci: the script run on a tiny model, its exit statuses with a stand-in, and the workflow that calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import some_text

ROOT = Path(__file__).parents[2]
CI = ROOT / "recipes" / "ci"
STAND_IN = """#!/usr/bin/env bash
echo "$@" >> {log}
if [[ $1 == evaluate ]]; then mkdir -p {out}; exit {evaluate}; fi
[[ {verify} == 0 || {verdict} == 1 ]] && echo '{{}}' > {out}/verdict.json
echo "a sentence"
exit {verify}
"""


def gate(*arguments: str | Path, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [CI / "verify.sh", *arguments], capture_output=True, text=True, timeout=300, env=variables | environment
    )


def test_a_tiny_model_is_judged(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(some_text(3000, 0))
    done = gate(
        model_folder, tmp_path / "text.txt", tmp_path / "eval", "--attention", "false",
        path=Path(sys.executable).parent,
        CACHES="0+16 1+15 4+12", CACHE="1+15", AGAINST="4+12", TOKENS="700", RECOMPUTE="250", MARGIN="0.02",
    )  # fmt: skip
    assert "Traceback" not in done.stderr and done.returncode in (0, 1), (
        done.stderr
    )  # a random model need not be proven
    record = json.loads((tmp_path / "eval/verdict.json").read_text())
    assert done.returncode == {"proven": 0, "not proven": 1}[record["statement"]] and record["margin"] == 0.02
    summary = (tmp_path / "eval/summary.txt").read_text()
    assert summary in done.stdout and all(sentence in summary for sentence in record["sentences"])


@pytest.mark.parametrize(
    ("evaluate", "verify", "verdict", "status"),
    [(0, 0, 1, 0), (0, 1, 1, 1), (0, 2, 1, 2), (0, 2, 0, 3), (0, 130, 0, 3), (2, 0, 1, 3), (137, 0, 1, 3)],
)
def test_the_exit_status(evaluate: int, verify: int, verdict: int, status: int, tmp_path: Path) -> None:
    out, stand_in = tmp_path / "out", tmp_path / "bin" / "sinktrain"
    stand_in.parent.mkdir()
    stand_in.write_text(
        STAND_IN.format(evaluate=evaluate, verify=verify, verdict=verdict, out=out, log=tmp_path / "log")
    )
    stand_in.chmod(0o755)
    out.mkdir()
    (out / "verdict.json").write_text("an old one")
    done = gate("a model", "text", out, path=stand_in.parent)
    assert done.returncode == status, done.stderr
    assert (out / "verdict.json").exists() == (status < 3)
    said = (tmp_path / "log").read_text().splitlines()
    assert said[0].startswith("evaluate --model.name a model --text text --caches 0+256 1+255 4+252 --tokens 8192")
    assert evaluate != 0 or (said[1].startswith("verify --results") and "--margin" not in said[1])


def test_without_arguments_it_says_how_it_is_called() -> None:
    done = subprocess.run([CI / "verify.sh"], capture_output=True, text=True)
    assert done.returncode == 3 and "Exit status: 0 proven" in done.stderr and "#" not in done.stderr


def test_the_workflow_and_the_page_call_what_is_there() -> None:
    steps = yaml.safe_load((CI / "workflow.yml").read_text())["jobs"]["train-and-judge"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    assert "recipes/ci/verify.sh" in commands and "scripts/setup.sh" in commands
    (kept,) = (step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()"
    for step in steps:
        subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, check=True)
    page = (CI / "README.md").read_text()
    script = (CI / "verify.sh").read_text()
    for variable in ("CACHES", "CACHE", "AGAINST", "TOKENS", "RECOMPUTE", "MARGIN"):
        assert f"`{variable}`" in page and f"${{{variable}:" in script
    assert os.access(CI / "verify.sh", os.X_OK) and (ROOT / "sinktrain/evaluation/verdict.schema.json").is_file()
