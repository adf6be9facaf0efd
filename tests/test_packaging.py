"""What importing costs, what the streaming part can do without, and whether the pins hold."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "lightning", "datasets", "numpy", "matplotlib", "deepspeed", "wandb")
NOT_FOR_STREAMING = ("lightning", "datasets", "deepspeed", "wandb", "matplotlib", "jsonargparse")
WITHOUT_THEM = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {NOT_FOR_STREAMING!r} else find(name, path, target)

PathFinder.find_spec = staticmethod(find_others)
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


def constraints() -> dict[str, Requirement]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    return {normal(requirement.name): requirement for requirement in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = python("import sinktrain, sys; print('sinktrain' in sys.modules, *sys.modules)").split()
    assert loaded[0] == "True"
    assert not set(HEAVY) & set(loaded)


def test_streaming_needs_neither_trainer_nor_datasets_nor_command_line() -> None:
    code = WITHOUT_THEM + "import pkgutil, importlib, sinktrain.streaming, sinktrain.sinks\n"
    code += "for room in (sinktrain.streaming, sinktrain.sinks):\n"
    code += "    for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
    code += "        print(importlib.import_module(module.name).__name__)\n"
    assert "sinktrain.sinks.config" in python(code).splitlines()


@pytest.mark.parametrize("name", NOT_FOR_STREAMING)
def test_the_modules_are_gone_when_they_are_made_to_be(name: str) -> None:
    code = WITHOUT_THEM + f"try:\n    import {name}\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert python(code) == f"No module named '{name}'"


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pin = constraints().get(normal(requirement.name))
    assert pin is not None, f"{requirement.name} is missing in constraints.txt"
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert requirement.specifier.contains(exact.version)


def test_every_line_of_the_constraints_is_one_exact_version() -> None:
    pins = constraints()
    assert len(pins) > 50
    for pin in pins.values():
        assert [each.operator for each in pin.specifier] == ["=="] and "*" not in str(pin.specifier), str(pin)


def test_installed_versions_are_the_pinned_ones() -> None:
    pins = constraints()
    installed = {normal(each.name): each.version for each in importlib.metadata.distributions()}
    compared = {name: version for name, version in installed.items() if name in pins}
    assert {"torch", "transformers", "lightning", "pytest"} <= set(compared)
    wrong = {name: version for name, version in compared.items() if not pins[name].specifier.contains(version)}
    assert not wrong, f"{wrong} differ from constraints.txt; run scripts/setup.sh"


def test_no_malicious_release_of_lightning_is_allowed() -> None:
    bounds = next(each for each in requirements() if each.name == "lightning").specifier
    assert not bounds.contains("2.6.2") and not bounds.contains("2.6.3") and bounds.contains("2.6.6")
