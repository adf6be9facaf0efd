"""How many bytes of tensors live at a time, counted while operations run, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITHIN = ("logsumexp",)
"""Operations that make a tensor as large as their input and free it before they return, out of a mode's sight."""


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make until they are freed.

    What an operation keeps to itself is not seen, but for those in `WITHIN`.

    Args:
        known: tensors that are not counted, such as parameters.

    Attributes:
        now: bytes alive.
        peak: the most there were since it was last set.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._meet(tensor, counted=False)

    def _meet(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        weakref.finalize(storage, self._forget, key)
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at what it made."""
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in WITHIN:
            self.peak = max(self.peak, self.now + args[0].nbytes)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        return made


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Sums the storages that autograd keeps for the backward pass, each once; those of `known` tensors are none."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._storages: dict[int, Any] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._storages[storage._cdata] = storage  # kept, so that no other gets its address
        return tensor

    def take(self) -> int:
        """The bytes; the storages are let go."""
        total: int = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()
        return total


class OperationNames(TorchDispatchMode):
    """Counts operations by name, but those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arithmetic: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts it."""
        looks = func.is_view or func.overloadpacket.__name__ == "_unsafe_view"
        if func.namespace == "aten" and not looks:
            self.arithmetic[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))
