"""Results as JSON that any program reads."""

from __future__ import annotations

import json
import math
from typing import Any

from sinktrain.base.secrets import redact


def as_json(record: dict[str, Any]) -> str:
    """A result as the text of a file: without secrets, and null for a number that is not finite, for which JSON has no
    word (Python writes NaN, which other readers refuse)."""
    return json.dumps(_finite(redact(record)), indent=1, allow_nan=False) + "\n"


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
