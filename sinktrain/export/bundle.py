"""The streaming engine as one file, `custom_generate/generate.py`, for use where sinktrain is not installed.

It is made of the modules of `sinktrain.streaming` themselves: their imports of each other are dropped, the rest is put
together in order.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import TypeGuard

MODULES = (
    "sinktrain.base.errors",
    "sinktrain.sinks.outlet",
    *(
        f"sinktrain.streaming.{name}"
        for name in (
            "spec", "rotary", "own_attention", "positions", "step", "layer", "kernels", "padded", "fused", "chunk",
            "decode", "cache", "attention", "attach",
        )
    ),
)  # fmt: skip
"""What a stream needs, each after what it uses."""

_HEAD = '''"""Streams with attention sinks (StreamingLLM, arXiv 2309.17453): the first tokens stay in the cache.

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=100_000)
    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, cache="4+1020")

Made by sinktrain {version} from its own modules (`sinktrain.export.bundle`); needs torch and transformers alone.
Licence: Apache-2.0.
"""

from __future__ import annotations

'''

_TAIL = '''
CACHE = "{cache}"
"""The sinks that this model was trained with, and as many recent tokens as fill its cache."""


def generate(model, *args, cache=CACHE, rule="cache", revision=None, **kwargs):
    """`model.generate` with a cache that keeps x first tokens and the y most recent ones.

    Args:
        model: the model.
        *args: as for `generate`.
        cache: "x+y".
        rule: which distance the sinks are seen at, `cache` or `original`.
        revision: of the repository that this file was loaded from, which transformers passes on; not used.
        **kwargs: as for `generate`; with `past_key_values` an earlier stream goes on.
    """
    if kwargs.get("past_key_values") is None:
        kwargs["past_key_values"] = SinkCache.for_model(model, cache, rule=rule)
    return model.generate(*args, **{{"use_cache": True, **kwargs}})
'''


def bundle(cache: str) -> str:
    """The source of `generate.py`, whose default cache is `cache` ("x+y").

    Raises:
        ValueError: two modules define the same name.
    """
    import sinktrain

    outside: dict[str, set[str]] = {}
    names: set[str] = set()
    bodies = []
    for module in MODULES:
        tree, lines = _read(module)
        for source, imported in _imports(tree):
            outside.setdefault(source, set()).update(imported)
        body = _without_imports(tree, lines)
        defined = _defined(body)
        if twice := defined & names:
            raise ValueError(f"{module}: {', '.join(sorted(twice))} stands in another module, too; rename it")
        names |= defined
        bodies.append(body)
    text = "\n\n".join(bodies)
    imports = [f"from {source} import {', '.join(sorted(found))}" for source, found in outside.items() if source]
    plain = [f"import {name}" for name in outside.get("", ())]
    head = _HEAD.format(version=sinktrain.__version__) + "\n".join([*sorted(plain), *sorted(imports)])
    return f"{head}\n\n\n{text}\n{_TAIL.format(cache=cache)}"


def _read(module: str) -> tuple[ast.Module, list[str]]:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    return ast.parse(source), source.splitlines()


def _imports(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """What a module imports from outside at its top: (source, names), with "" for plain imports."""
    found = []
    for node in tree.body:
        names = [ast.unparse(alias) for alias in getattr(node, "names", []) if alias.name != "TYPE_CHECKING"]
        if isinstance(node, ast.Import):
            found.append(("", names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(("sinktrain", "__")):
            found.append((node.module, names))
    return found


def _without_imports(tree: ast.Module, lines: list[str]) -> str:
    """The text of a module without its docstring, its imports, and those of sinktrain inside its functions."""
    dropped = [tree.body[0], *(node for node in tree.body if _is_import(node))]
    dropped += [node for node in ast.walk(tree) if _is_import(node) and "sinktrain" in ast.unparse(node)]
    numbers = {n for node in dropped for n in range(node.lineno - 1, node.end_lineno or node.lineno)}
    return "\n".join(line for n, line in enumerate(lines) if n not in numbers).strip("\n") + "\n"


def _is_import(node: ast.AST) -> TypeGuard[ast.stmt]:
    """An import, or a block of imports for annotations."""
    checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return checking or isinstance(node, ast.Import | ast.ImportFrom)


def _defined(body: str) -> set[str]:
    """The names that a module defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(body).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found
