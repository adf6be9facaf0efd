"""The tiny recipe's golden losses: its own text, its own settings, every kind, compared with `golden.json`.

To renew them after a change that is meant to change numbers: delete the file and run this test.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import compare_kinds  # noqa: E402

from sinktrain.cli import main  # noqa: E402

TINY = ROOT / "recipes" / "tiny"
GOLDEN = TINY / "golden.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the recipe's text, prepared by the command of its README."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, TINY / "text.py", folder / "text.txt"], check=True)
    out = folder / "data" / "tiny"
    assert main(["prepare", "--source", str(folder / "text.txt"), "--train_tokenizer", "512", "--out", str(out)]) == 0
    return folder


def losses(folder: Path, kind: str, name: str) -> dict[str, list[float]]:
    """Every loss that the recipe logs for `kind`."""
    out = folder / name
    settings = compare_kinds.settings(TINY, "fit.yaml", out, kind, 0)
    settings["model"]["tokenizer"] = str(folder / "data" / "tiny" / "tokenizer")
    settings["data"]["path"] = str(folder / "data" / "tiny")
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(folder / f"{name}.yaml")]) == 0
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row.get(key)] for key in ("train/loss", "val/loss")}


@pytest.mark.parametrize("kind", list(compare_kinds.KINDS))
def test_golden_losses_of_the_recipe(folder: Path, kind: str) -> None:
    """All 100 steps; processors that sum in another order end within a thousandth of a nat."""
    found = losses(folder, kind, kind)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if kind not in golden:
        rounded = {key: [round(value, 6) for value in values] for key, values in found.items()}
        GOLDEN.write_text(json.dumps({**golden, kind: rounded}) + "\n")
        pytest.fail(f"{GOLDEN} had no losses of {kind}; they are written, commit them")
    assert len(found["train/loss"]) == 100 and len(found["val/loss"]) == 2
    assert found["train/loss"][:10] == pytest.approx(golden[kind]["train/loss"][:10], abs=2e-5)
    for key, values in found.items():
        assert values == pytest.approx(golden[kind][key], abs=1e-3), key


@pytest.mark.slow
def test_a_second_run_is_the_same_bit_for_bit(folder: Path) -> None:
    first, second = (losses(folder, "token", f"again-{number}") for number in range(2))
    assert first == second and first["train/loss"]
