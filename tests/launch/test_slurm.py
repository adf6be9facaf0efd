"""scripts/slurm.sh as a job of a SLURM that is not there: srun, scontrol, scancel and squeue are small scripts."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from launching import ROOT, SHORT, environment, until

SLURM = str(ROOT / "scripts/slurm.sh")

# What a job calls. srun ends with $SRUN_STATUS, or with 128 + signal when it gets one (as its ranks then do); it saves
# for half a second. Every call is written down.
FAKES = {
    "srun": "trap 'got=138' USR1; trap 'got=143' TERM; echo srun \"$@\" >>calls; "
    "while [[ -z ${SRUN_STATUS:-}${got:-} ]]; do sleep 0.05; done; [[ -z ${got:-} ]] || { sleep 0.5; touch saved; }; "
    'exit "${SRUN_STATUS:-$got}"',
    "scontrol": 'echo scontrol "$@" >>calls',
    "scancel": 'echo scancel "$@" >>calls',
    "squeue": 'echo "$SLURM_JOB_ID"; echo "${ANOTHER:-}"',
}
CHAIN = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "10"}
REQUEUE = "scontrol requeue 77"
END_CHAIN = "scancel --state=PENDING 70"


def job(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    for name, body in FAKES.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", SLURM, "--checkpoints.folder", "runs/a b", *arguments], cwd=folder, text=True, stderr=subprocess.PIPE,
        env=environment(PATH=path, SLURM_JOB_ID="77", SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="4", **variables),
    )  # fmt: skip


def calls(folder: Path) -> list[str]:
    """What the job called after srun."""
    made = (folder / "calls").read_text().splitlines()
    assert made[0].startswith("srun --nodes=2 --ntasks-per-node=4 ") and "--kill-on-bad-exit=0 --wait=120" in made[0]
    assert made[0].endswith(" fit --checkpoints.folder runs/a b --trainer.num_nodes 2 --trainer.devices 4")
    return made[1:]


@pytest.mark.parametrize(
    ("status", "variables", "expected"),
    [
        (0, {}, []),
        (0, CHAIN, [END_CHAIN]),
        (2, {}, []),
        (2, CHAIN, [END_CHAIN]),
        (138, {}, [REQUEUE]),
        (138, {"SLURM_RESTART_COUNT": "50"}, [REQUEUE]),
        (138, CHAIN, []),
        (143, {}, []),
        (143, CHAIN, []),
        (130, {}, []),
        (137, {}, [REQUEUE]),
        (1, {"SLURM_RESTART_COUNT": "2"}, [REQUEUE]),
        (1, {"SLURM_RESTART_COUNT": "3"}, []),
        (1, {"SINKTRAIN_RETRIES": "0"}, []),
        (1, CHAIN, []),
    ],
)
def test_what_follows(status: int, variables: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    run = job(tmp_path, SRUN_STATUS=str(status), **variables)
    _, said = run.communicate(timeout=SHORT)
    assert run.returncode == status, said
    assert calls(tmp_path) == expected
    assert said.count("slurm: ") == 2  # it says which job it is, and what follows


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGUSR1, [REQUEUE]), (signal.SIGTERM, [])])
def test_signals_to_the_batch_script(number: int, expected: list[str], tmp_path: Path) -> None:
    """It survives them, repeated ones too, passes them on and waits for the ranks' status."""
    run = job(tmp_path)
    until((tmp_path / "calls").exists)
    run.send_signal(number)
    until(lambda: not (run.poll() is None and run.send_signal(number)) and run.poll() is not None)
    assert run.returncode == 128 + number and (tmp_path / "saved").exists()
    assert calls(tmp_path) == expected


def test_the_last_of_a_chain(tmp_path: Path) -> None:
    run = job(tmp_path, SRUN_STATUS="138", **{**CHAIN, "SLURM_ARRAY_TASK_ID": "10"})
    _, said = run.communicate(timeout=SHORT)
    assert run.returncode == 138 and "the last job of the chain" in said and calls(tmp_path) == []


def test_refusals(tmp_path: Path) -> None:
    """Two jobs of a chain at once, a folder that is not said, and a start that is no job: each in one sentence."""
    run = job(tmp_path, ANOTHER="78", **CHAIN)
    _, said = run.communicate(timeout=SHORT)
    assert run.returncode == 2 and "--array=1-10%1" in said and not (tmp_path / "calls").exists()
    (tmp_path / "with.yaml").write_text("checkpoints:\n  folder: runs/a\n")
    for arguments, sentence in (([], "--checkpoints.folder"), (["--config", "with.yaml"], "this is no SLURM job")):
        variables = environment(**({"DRY_RUN": "1"} if not arguments else {}))
        variables.pop("SLURM_JOB_ID", None)
        done = subprocess.run(["bash", SLURM, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1
