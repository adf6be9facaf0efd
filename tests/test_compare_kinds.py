"""The comparison of kinds: what differs between two runs of a recipe, and the arithmetic of its table."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import compare_kinds  # noqa: E402
from kinds_table import Run, interval, print_table, read_runs, student_95, table  # noqa: E402

RECIPES = [ROOT / "recipes" / name for name in ("tiny", "table3", "table3-small")]


def leaves(tree: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Every setting by its place."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in leaves(value, (*path, str(key))).items()}
    if isinstance(tree, list):
        return {k: v for i, value in enumerate(tree) for k, v in leaves(value, (*path, str(i))).items()}
    return {path: tree}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
@pytest.mark.parametrize("kind", list(compare_kinds.KINDS))
def test_runs_differ_in_sink_seed_and_folder_alone(recipe: Path, kind: str) -> None:
    ours, theirs = (
        leaves(compare_kinds.settings(recipe, "fit.yaml", Path("runs/x") / name, k, seed))
        for name, k, seed in (("a", kind, 0), ("b", "token", 1))
    )
    differing = {place for place in ours.keys() | theirs.keys() if ours.get(place) != theirs.get(place)}
    seeds = {("model", "seed"), ("data", "seed"), ("seed_everything",)}
    assert seeds <= differing
    for place in differing - seeds:
        in_folder = str(theirs.get(place, "")).startswith("runs/x/b")
        assert place[:2] == ("model", "sink") or in_folder, place
    assert ours[("data", "reserve_sinks")] == 2


def test_every_kind_is_one_that_sinktrain_knows() -> None:
    from sinktrain.sinks.config import SinkConfig, SinkKind

    configs = {name: SinkConfig(**options) for name, options in compare_kinds.KINDS.items()}
    assert configs["two-tokens"].count == 2
    assert {config.kind for config in configs.values()} == set(get_args(SinkKind))
    assert len(set(configs.values())) == len(configs)


def test_quantiles_beyond_the_table() -> None:
    """Against printed ones; with 12 rounds there are 11 degrees of freedom."""
    printed = {10: 2.228, 11: 2.201, 15: 2.131, 20: 2.086, 30: 2.042, 120: 1.980}
    assert {freedom: student_95(freedom) for freedom in printed} == pytest.approx(printed, abs=4e-3)
    assert interval([0.0, 1.0] * 6)[1] == pytest.approx(2.201 * 0.52223 / 12**0.5, rel=2e-3)


def test_the_interval_is_students() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):  # 95% of intervals from three normal numbers hold their mean
        middle, half = interval(list(rng.normal(1.0, 2.0, size=3)))
        inside += abs(middle - 1.0) < half
    assert 0.93 < inside / 2000 < 0.97
    assert interval([1.0]) == (1.0, math.inf)


def made_up(kind: str, seed: int, loss: float) -> Run:
    return Run(kind, seed, loss, {"1+63": math.log(10 + seed), "0+64": math.log(20.0)})


def test_the_table_compares_seed_by_seed() -> None:
    runs = [made_up("none", seed, 3.0 + seed) for seed in range(3)]  # the seeds differ far more than the kinds
    runs += [made_up("token", seed, 3.1 + seed) for seed in range(3)]
    header, none, token = table(runs)
    assert header == ["kind", "seeds", "val loss", "less none", "1+63", "0+64"]
    assert none[3] == ""
    assert token == ["token", "3", "4.1 (3.1 to 5.1)", "+0.1000 ± 0.0000", "11 (10 to 12)", "20 (20 to 20)"]


def test_fewer_than_three_seeds_are_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table([made_up("none", seed, 3.0) for seed in range(3)], tmp_path)
    assert "no comparison" not in capsys.readouterr().out
    print_table([made_up("none", 0, 3.0), made_up("none", 1, 3.0)], tmp_path)
    assert "no comparison" in (tmp_path / "table.md").read_text()


def test_only_finished_runs_are_read(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"none-{seed}"
        (folder / "evaluation").mkdir(parents=True)
        (folder / "logs").mkdir()
        (folder / "logs" / "metrics.csv").write_text(
            "step,train/loss,val/loss\n1,5.0,\n1,,4.5\n2,4.0,\n2,,3.5\n3,3.9,\n"
        )
        row = {"name": "1+63", "nll_full_cache": 2.5}
        (folder / "evaluation" / "results.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "none-1" / "evaluate.done").touch()
    assert read_runs(tmp_path, ["none", "token"], [0, 1]) == [Run("none", 1, 3.5, {"1+63": 2.5})]


def test_a_recipe_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"model": {}}))
    with pytest.raises(SystemExit, match="must write under"):
        compare_kinds.settings(tmp_path, "fit.yaml", Path("x"), "none", 0)


def test_what_follows_fit_goes_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(compare_kinds.subprocess, "run", lambda command, **_: calls.append(command[3:]))
    monkeypatch.setattr(compare_kinds, "print_table", lambda *_: None)
    monkeypatch.setattr(compare_kinds, "read_runs", lambda *_: [])
    arguments = [str(RECIPES[0]), "--kinds", "none", "token", "--seeds", "3", "--out", str(tmp_path), "--fit"]
    monkeypatch.setattr(sys, "argv", ["compare_kinds.py", *arguments, "--trainer.max_steps", "5"])
    compare_kinds.main()
    assert [call[0] for call in calls] == ["fit", "evaluate"] * 2
    assert calls[0][3:] == ["--trainer.max_steps", "5"]
    assert calls[2][3:] == ["--trainer.max_steps", "5"] and calls[3][3:] == []
    # A run that was stopped goes on from what is in the folder that its config names.
    assert yaml.safe_load((tmp_path / "token-3" / "fit.yaml").read_text())["checkpoints"] == {
        "folder": str(tmp_path / "token-3" / "checkpoints")
    }
    compare_kinds.main()
    assert len(calls) == 4  # all were done


def test_two_jobs_share_the_cores_and_a_failure_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def fails(command: list[str], env: dict[str, str], **_: object) -> None:
        threads.append(env["OMP_NUM_THREADS"])
        time.sleep(0.05)  # so that the first failure is heard of before all have failed
        raise subprocess.CalledProcessError(2, command)

    monkeypatch.setattr(compare_kinds.subprocess, "run", fails)
    monkeypatch.setattr(compare_kinds.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(sys, "argv", ["compare_kinds.py", str(RECIPES[0]), "--out", str(tmp_path), "--jobs", "2"])
    with pytest.raises(subprocess.CalledProcessError):
        compare_kinds.main()
    assert set(threads) == {"3"} and 1 <= len(threads) < 21  # of 7 kinds with 3 seeds
