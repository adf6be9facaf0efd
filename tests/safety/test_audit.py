"""No malicious release gets in, and an audit that could not be made is never called clean."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MALICIOUS = ("2.6.2", "2.6.3")


def requirements() -> list[Requirement]:
    """Of pyproject.toml, of every file of constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for path in (ROOT / "constraints.txt", ROOT / "scripts" / "peers" / "constraints.txt"):
        lines += [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("release", MALICIOUS)
@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_no_malicious_release_is_allowed(name: str, release: str) -> None:
    bounds = [each.specifier for each in requirements() if each.name.lower().replace("_", "-") == name]
    assert bounds and not any(each.contains(release, prereleases=True) for each in bounds)
    assert all(each.contains("2.6.6") for each in bounds)


def audit(folder: Path, pins: str, report: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the script with a pip-audit that writes `report` and ends with `status`."""
    (folder / "pins.txt").write_text(pins)
    tool = folder / "pip-audit"
    (folder / "report").write_text(report if isinstance(report, str) else json.dumps(report))
    tool.write_text(
        '#!/usr/bin/env bash\nwhile [[ $1 != --output ]]; do shift; done\n'
        f'cp "{folder}/report" "$2"\necho "no route to the service" >&2\nexit {status}\n'
    )  # fmt: skip
    tool.chmod(0o755)
    command = ["bash", str(ROOT / "scripts" / "audit.sh"), str(folder / "pins.txt")]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_AUDIT": str(tool)})


def entry(name: str, *vulnerabilities: str, **more: str) -> dict[str, object]:
    vulns = [{"id": each, "fix_versions": ["9.9"]} for each in vulnerabilities]
    return {"name": name, "version": "1.0", "vulns": vulns, **more}


def test_the_three_answers(tmp_path: Path) -> None:
    pins = "# pins\na==1.0\nb==1.0\n"
    clean = {"dependencies": [entry("a"), entry("b")]}
    assert audit(tmp_path, pins, clean).returncode == 0
    unsafe = audit(tmp_path, pins, {"dependencies": [entry("a"), entry("b", "CVE-1")]}, 1)
    assert unsafe.returncode == 1 and "b 1.0: CVE-1 (fixed in 9.9)" in unsafe.stdout
    for report, status in (
        ("", 1),
        ("{}", 0),
        ({"dependencies": [entry("a")]}, 0),
        ({"dependencies": [entry("a"), {"name": "b", "skip_reason": "could not be asked"}]}, 0),
        (clean, 1),
    ):
        unknown = audit(tmp_path, pins, report, status)
        assert unknown.returncode == 2, report
        assert unknown.stderr.splitlines()[-1].startswith("audit: ") and "nothing is known" in unknown.stderr


@pytest.mark.parametrize("pin", ["lightning==2.6.2", "pytorch-lightning==2.6.3", "pytorch_lightning == 2.6.2"])
def test_a_malicious_pin_is_found_without_the_network(tmp_path: Path, pin: str) -> None:
    done = audit(tmp_path, f"a==1.0\n{pin}\n", {"dependencies": [entry("a"), entry("lightning")]})
    assert done.returncode == 1 and "malicious" in done.stderr
