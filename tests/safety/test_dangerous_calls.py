"""No line of the package or its scripts unpickles, evaluates text, or runs a model's own code; what may is listed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("sinktrain/**/*.py"), *ROOT.glob("scripts/**/*.py"), *ROOT.glob("recipes/**/*.py")])

ALLOWED = {
    ("sinktrain/evaluation/subject.py", "trust_remote_code=True"): "the option model.trust_remote_code, off by default",
    ("sinktrain/export/probe.py", "trust_remote_code=True"): "code that is what `export` writes, letter by letter",
    ("sinktrain/training/module.py", "trust_remote_code=True"): "the option model.trust_remote_code, off by default",
}
"""File and finding, and why it is no danger."""

MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas.read_pickle")
LOADERS = ("load", "loads", "open", "Unpickler", "read_pickle")


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute, the last parts of another expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def imported(tree: ast.AST) -> dict[str, str]:
    """What each name of the file stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def in_a_call(node: ast.Call, names: dict[str, str]) -> str | None:
    first, dot, rest = dotted(node.func).partition(".")
    name = names.get(first, first) + dot + rest
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    module, _, function = name.rpartition(".")
    if (module in MODULES and function in LOADERS) or function in ("read_pickle", "Unpickler"):
        return name
    if name in ("eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen"):
        return name
    if name in ("torch.load", "torch.hub.load_state_dict_from_url") and not is_constant(
        given.get("weights_only"), True
    ):
        return f"{name} without weights_only=True"
    if is_constant(given.get("weights_only"), False):
        return "weights_only=False"
    if module == "yaml" and function.removesuffix("_all") in ("load", "unsafe_load", "full_load"):
        return name
    if "allow_pickle" in given and not is_constant(given["allow_pickle"], False):
        return "allow_pickle"
    if "shell" in given and not is_constant(given["shell"], False):
        return "shell=True"
    if is_constant(given.get("trust_remote_code"), True):
        return "trust_remote_code=True"
    return None


def findings(source: str) -> list[str]:
    tree = ast.parse(source)
    names, found = imported(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (what := in_a_call(node, names)):
            found.append(what)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and is_constant(value, True):
                    found.append("trust_remote_code=True")
    return found


def test_nothing_dangerous_but_what_is_allowed() -> None:
    assert len(FILES) > 100
    found = {(path.relative_to(ROOT).as_posix(), what) for path in FILES for what in findings(path.read_text())}
    assert found - set(ALLOWED) == set(), "a new danger: use another way, or allow it here with its reason"
    assert set(ALLOWED) - found == set(), "no longer needed here"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.load(f)",
        "import pickle as p; p.loads(b)",
        "from pickle import load as read; read(f)",
        "import pickle; pickle.Unpickler(f).load()",
        "import torch; torch.load(p)",
        "import torch; torch.load(p, weights_only=False)",
        "import torch; torch.load(p, weights_only=flag)",
        "from torch import load; load(p)",
        "Model.from_pretrained(p, weights_only=False)",
        "import numpy as np; np.load(p, allow_pickle=True)",
        "import yaml; yaml.load(f, Loader=yaml.Loader)",
        "import yaml; yaml.unsafe_load(f)",
        "import joblib; joblib.load(p)",
        "import pandas as pd; pd.read_pickle(p)",
        "eval(text)",
        "exec(text)",
        "import os; os.system(text)",
        "import subprocess; subprocess.run(text, shell=True)",
        "Auto.from_pretrained(p, trust_remote_code=True)",
        "hub = {'trust_remote_code': True}",
    ],
)
def test_each_danger_is_seen(line: str) -> None:
    assert findings(line)


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load(p, weights_only=True)",
        "import numpy as np; np.load(p)",
        "import yaml; yaml.safe_load(f)",
        "model.eval()",
        "import json; json.load(f)",
        "Auto.from_pretrained(p, trust_remote_code=False)",
    ],
)
def test_what_is_safe_is_left_alone(line: str) -> None:
    assert not findings(line)
