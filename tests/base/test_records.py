"""Result files that any reader of JSON takes, without secrets."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sinktrain.base.records import as_json

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "b c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


def refused(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


def alike(written: Any, found: Any) -> bool:
    if isinstance(written, dict):
        return set(written) == set(found) and all(alike(written[name], found[name]) for name in written)
    if isinstance(written, list):
        return len(written) == len(found) and all(map(alike, written, found))
    if isinstance(written, float) and not math.isfinite(written):
        return found is None
    return bool(written == found)


@given(st.dictionaries(st.sampled_from("abc"), TREES))
def test_every_record_is_json_and_keeps_what_is_finite(record: dict[str, Any]) -> None:
    text = as_json(record)
    assert text.endswith("}\n")
    assert alike(record, json.loads(text, parse_constant=refused))


def test_secrets_stay_out() -> None:
    assert "hf_" not in as_json({"command": "fit --token hf_abcdefghijklmnopqrstuvwxyzabcdefgh"})
