"""Held out by document: disjoint, the same every time, and whatever the order."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sinktrain.data.splitting import cut_tail, document_hash, held_out

TEXTS = st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=40)
FRACTIONS = st.floats(0.001, 0.999)


def mask(texts: list[str], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    return held_out(np.array([document_hash(text, seed) for text in texts], dtype=np.uint64), fraction)


@given(TEXTS, FRACTIONS, st.integers())
def test_sides_are_disjoint_and_both_hold_a_document(texts: list[str], fraction: float, seed: int) -> None:
    assume(len(set(texts)) > 1)
    chosen = mask(texts, fraction, seed)
    validation = {text for text, is_held in zip(texts, chosen, strict=True) if is_held}
    train = {text for text, is_held in zip(texts, chosen, strict=True) if not is_held}
    assert validation and train and not validation & train


@given(st.data(), TEXTS, FRACTIONS)
def test_order_does_not_matter(data: st.DataObject, texts: list[str], fraction: float) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = mask([texts[i] for i in order], fraction)
    np.testing.assert_array_equal(shuffled, mask(texts, fraction)[list(order)])


@given(TEXTS)
def test_one_text_many_times_is_on_one_side(texts: list[str]) -> None:
    chosen = mask([texts[0]] * 3, 0.5)
    assert chosen.all() or not chosen.any()


def test_fraction_and_seed() -> None:
    texts = [str(i) for i in range(20_000)]
    chosen = mask(texts, 0.05)
    assert 800 < chosen.sum() < 1200
    assert (chosen != mask(texts, 0.05, seed=1)).sum() > 1000
    assert (mask(texts, 0.1) >= chosen).all()  # a larger part holds the smaller


@given(st.text(min_size=2), FRACTIONS)
def test_tail(text: str, fraction: float) -> None:
    head, tail = cut_tail(text, fraction)
    assert head and tail and head + tail == text
    assert abs(len(tail) - fraction * len(text)) <= 1
