"""Accumulation from the global batch in tokens, and the sentences when there is none."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sinktrain.base.errors import UserError
from sinktrain.data.global_batch import accumulation

sizes = st.integers(1, 60)


@given(sizes, sizes, sizes, sizes)
def test_the_product_is_the_global_batch(length: int, batch: int, ranks: int, times: int) -> None:
    assert accumulation(length * batch * ranks * times, length, batch, ranks) == times


@given(st.integers(-5, 10_000), sizes, sizes, st.integers(1, 4))
def test_what_the_sentence_names_works(tokens: int, length: int, batch: int, ranks: int) -> None:
    assume(tokens < length * batch * ranks or tokens % (length * batch * ranks))
    with pytest.raises(UserError) as raised:
        accumulation(tokens, length, batch, ranks)
    sentence = str(raised.value)
    assert sentence.startswith(f"--data.global_batch_tokens {tokens}: ")
    works = re.search(r"; (\d+)(?: and (\d+) work| is the least)", sentence)
    assert works
    near = [int(number) for number in works.groups() if number]
    assert all(accumulation(number, length, batch, ranks) >= 1 for number in near)
    assert near[0] >= tokens or near[0] < tokens < near[1] == near[0] + length * batch * ranks
    if fitting := re.search(r"--data\.batch_size (\d+)(?: or (\d+))?\.", sentence):
        assert all(accumulation(tokens, length, int(number), ranks) for number in fitting.groups() if number)
    else:
        assert tokens <= 0 or tokens % (length * ranks)


def test_the_sentence() -> None:
    with pytest.raises(UserError) as raised:
        accumulation(30_720, 512, 8, 2)
    assert str(raised.value) == (
        "--data.global_batch_tokens 30720: is no multiple of a micro-batch (512 positions x 8 samples x 2 processes = "
        "8192); 24576 and 32768 work, or with it --data.batch_size 6 or 10."
    )
