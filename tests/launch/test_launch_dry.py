"""What a dry run prints is what would run: torchrun's parser and fit's take it. And what is refused, and how."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import LAUNCH, ROOT, environment
from torch.distributed.run import parse_args

from sinktrain.training.fit import fit

sys.path.insert(0, str(ROOT / "scripts"))
from agent import status_of

CONFIG = ["--config", str(ROOT / "configs/trainer/cpu.yaml"), "--model.name", "a b", "--data.path", "data/own"]


def dry(*arguments: str) -> list[list[str]]:
    command = [LAUNCH, "--dry-run", *arguments, "--", *CONFIG]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("# machine ")]


def config_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The trainer's settings that `sinktrain fit` reads from a command."""
    with pytest.raises(SystemExit) as ended:
        fit([*words[words.index("fit") + 1 :], "--print_config"])
    assert ended.value.code == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    return {**trainer, "devices": int(trainer["devices"])}  # jsonargparse leaves it a word, as Lightning allows


def test_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = dry("--gpus", "8", "--restarts", "3", "--save-seconds", "900")
    assert words[:5] == [
        "env", "OMP_NUM_THREADS=1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900", sys.executable, str(ROOT / "scripts/agent.py")
    ]  # fmt: skip
    options = parse_args(words[5:])
    assert (options.nnodes, options.nproc_per_node, options.max_restarts, options.no_python) == ("1", "8", 3, True)
    assert set(options.signals_to_handle.split(",")) >= {"SIGTERM", "SIGINT", "SIGUSR1"}
    program = [options.training_script, *options.training_script_args]
    ends = ["--trainer.accelerator", "gpu", "--trainer.num_nodes", "1", "--trainer.devices", "8"]
    assert program[-len([*CONFIG, *ends]) - 5 :] == [sys.executable, "-u", "-m", "sinktrain", "fit", *CONFIG, *ends]
    trainer = config_of(words, capsys)
    assert (trainer["accelerator"], trainer["num_nodes"], trainer["devices"]) == ("gpu", 1, 8)  # not the YAML's


@pytest.mark.parametrize("how", [["--rdzv", "host:1234"], ["--master", "host"]])
def test_several_machines(how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    commands = dry("--nodes", "3", "--cpus", "2", *how)
    found = [parse_args(words[5:]) for words in commands]
    assert [options.nnodes for options in found] == ["3"] * 3
    if how[0] == "--rdzv":  # the same command everywhere
        assert commands[0] == commands[1] == commands[2]
        assert (found[0].rdzv_backend, found[0].rdzv_endpoint) == ("c10d", "host:1234")
    else:
        assert [(o.node_rank, o.master_addr, o.master_port) for o in found] == [(n, "host", 29500) for n in range(3)]
        assert dry("--nodes", "3", "--cpus", "2", *how, "--node-rank", "1") == [commands[1]]
    trainer = config_of(commands[2], capsys)
    assert (trainer["accelerator"], trainer["num_nodes"], trainer["devices"]) == ("cpu", 3, 2)


def test_a_job_of_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--checkpoints.folder", str(tmp_path)]
    variables = environment(DRY_RUN="1", SLURM_NNODES="4")
    del variables["OMP_NUM_THREADS"]
    command = ["bash", str(ROOT / "scripts/slurm.sh"), *folder, *CONFIG]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:6] == ["env", "OMP_NUM_THREADS=8", "srun", "--nodes=4", "--ntasks-per-node=8", "--cpus-per-task=8"]
    place = words.index("fit") + 1
    assert words[place : place + 2] == folder
    trainer = config_of([*words[:place], *words[place + 2 :]], capsys)
    assert (trainer["num_nodes"], trainer["devices"]) == (4, 8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--gpus 2 --cpus 2", "--gpus and --cpus exclude each other"),
        ("--cpus two", "--gpus and --cpus take a number"),
        ("--cpus", "--cpus needs a value"),
        ("--cpus --dry-run", "--cpus needs a value"),
        ("--cpus 2 --nodes 2", "--nodes 2 needs --rdzv HOST:PORT"),
        ("--cpus 2 --rdzv host:1", "--rdzv needs --nodes"),
        ("--cpus 2 --nodes 2 --rdzv host:port", "--rdzv takes HOST:PORT"),
        ("--cpus 2 --nodes 2 --rdzv host:1 --master host:1", "--rdzv excludes --master"),
        ("--cpus 2 --nodes 2 --master host:1", "--master needs --node-rank"),
        ("--cpus 2 --nodes 2 --node-rank 1", "--node-rank needs --master"),
        ("--cpus 2 --nodes 2 --master host:1 --node-rank 2", "--node-rank takes 0 to 1"),
        ("--cpus 2 --restarts -1", "--restarts takes a number"),
        ("--cpus 2 --save-seconds 1m", "--save-seconds takes"),
        ("--trainer.max_steps 3", "--trainer.max_steps is no option of launch.sh"),
    ],
)
def test_refusals(arguments: str, sentence: str) -> None:
    done = subprocess.run(
        [LAUNCH, *arguments.split()], env=environment(SINKTRAIN="false"), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(f"launch: {sentence}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(".\n")


def test_help() -> None:
    for script in ("launch.sh", "slurm.sh"):
        done = subprocess.run(["bash", str(ROOT / "scripts" / script), "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "--checkpoints.folder" in done.stdout
        assert not any(line.startswith("#") or "set -e" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("codes", "received", "status"),
    [
        ([0, 0], None, 0),
        ([0, 0], 15, 0),  # the signal came when training was done
        ([143, 143], None, 143),  # it came to another machine
        ([138, 138], 15, 138),  # SIGUSR1, then SIGTERM while the ranks saved
        ([143, 138], 15, 143),
        ([138, -15], None, 138),  # the second was about to end when ours closed it
        ([0, 143], 15, 143),
        ([-15, -15], 15, 143),  # too early to be handled, and so to have anything to save
        ([-10, -10], 10, 138),
        ([], 2, 130),
        ([143, -9], 15, 137),  # one has not saved in time
        ([143, 1], 15, 1),
        ([-9, -15], None, 137),
        ([2, -15], None, 2),
        ([-15, -15], None, 1),  # nobody asked us
        ([None], None, 137),
        ([], None, 1),
    ],
)
def test_the_status(codes: list[int | None], received: int | None, status: int) -> None:
    assert status_of(codes, received) == status
