"""Nested values for JSON: tensors are taken out of them, and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

_KEY = "__tensor__"


def without_tensors(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON has it; its tensors go into `tensors`, under names that begin with `name`.

    Raises:
        TypeError: a value that JSON has no word for.
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu()
        return {_KEY: name}
    if isinstance(tree, dict):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"{name}: its keys are no text")
        return {key: without_tensors(value, f"{name}/{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_tensors(value, f"{name}/{number}", tensors) for number, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{name}: {type(tree).__name__} is no plain value")


def with_tensors(tree: Any, read: Any) -> Any:
    """The inverse of `without_tensors`; `read` gives the tensor of a name. Tuples come back as lists."""
    if isinstance(tree, dict):
        if set(tree) == {_KEY}:
            return read(tree[_KEY])
        return {key: with_tensors(value, read) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_tensors(value, read) for value in tree]
    return tree


def random_state() -> dict[str, Any]:
    """Of all generators of this process: Python's, NumPy's, torch's on the host and on its CUDA device."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    state = random.getstate()
    return {
        "python": [state[0], list(state[1]), state[2]],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts all generators where `random_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
