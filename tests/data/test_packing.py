"""Packing `chunk` and `document`: what a row holds, and that documents in a row are as documents alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sinktrain.data.packing import IGNORED, Chunks, Documents
from sinktrain.data.plan import Plan, plan_rows

SINKS = [900, 901]
Texts = list[list[int]]


@given(st.integers(0, 200), st.integers(1, 20), st.integers(0, 2))
def test_chunks_are_the_text(tokens: int, text_length: int, sinks: int) -> None:
    text = np.arange(tokens, dtype=np.uint16)
    chunks = Chunks(text, text_length, SINKS[:sinks])
    assert len(chunks) == tokens // text_length
    found = chunks.read(np.arange(len(chunks)))
    assert found["input_ids"].shape == found["labels"].shape == (len(chunks), sinks + text_length)
    assert found["input_ids"][:, sinks:].ravel().tolist() == list(range(len(chunks) * text_length))
    assert (found["input_ids"][:, :sinks] == SINKS[:sinks]).all() and (found["labels"][:, :sinks] == IGNORED).all()
    assert np.array_equal(found["labels"][:, sinks:], found["input_ids"][:, sinks:])
    with pytest.raises(IndexError):
        chunks.read(np.array([len(chunks)]))


def test_tokens_above_the_signed_range_and_labels_that_are_no_view() -> None:
    found = Chunks(np.array([65_535, 40_000], dtype=np.uint16), 2, [7]).read(np.array([0]))
    assert found["input_ids"].dtype == found["labels"].dtype == np.int64
    found["labels"][:] = IGNORED
    assert found["input_ids"].tolist() == [[7, 65_535, 40_000]]


def test_no_room_for_text() -> None:
    with pytest.raises(ValueError, match="no room"):
        Chunks(np.arange(9, dtype=np.uint16), 0, SINKS)
    with pytest.raises(ValueError, match="no room"):
        plan_rows(np.zeros(1, dtype=np.int64), 9, 2, 2)
    with pytest.raises(ValueError, match="reserved"):
        Documents(np.arange(9, dtype=np.uint16), np.zeros(1, dtype=np.int64), 8, SINKS, 1)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def starts_of(sizes: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes[:-1]]).astype(np.int64)


def room_taken(plan: Plan, reserve: int) -> NDArray[np.int64]:
    row = np.repeat(np.arange(len(plan.firsts) - 1), np.diff(plan.firsts))
    return np.bincount(row, weights=plan.lengths + reserve).astype(np.int64)


@given(lengths, st.integers(3, 30), st.integers(0, 2))
def test_the_plan_holds_every_token_once_and_no_two_rows_fit_one(sizes: list[int], length: int, reserve: int) -> None:
    plan = plan_rows(starts_of(sizes), sum(sizes), length, reserve)
    order = np.argsort(plan.starts)
    ends = (plan.starts + plan.lengths)[order]
    assert plan.starts[order].tolist() == [0, *ends[:-1].tolist()] and ends[-1] == sum(sizes)
    assert set(starts_of(sizes).tolist()) <= set(plan.starts.tolist())  # every document begins a piece
    assert (plan.lengths > 0).all() and len(plan.starts) == sum(-(-size // (length - reserve)) for size in sizes)
    taken = np.sort(room_taken(plan, reserve))
    assert taken[-1] <= length and (len(taken) == 1 or taken[0] + taken[1] > length)
    assert (np.diff(plan.starts[plan.firsts[:-1]]) > 0).all()  # rows in the order of the text


def test_how_little_is_padding() -> None:
    """Lengths spread as those of web pages are, with many longer than a row and many far shorter."""
    sizes = np.random.default_rng(0).lognormal(np.log(150), 1.0, 20_000).astype(int).clip(1).tolist()
    plan = plan_rows(starts_of(sizes), sum(sizes), 512, 1)
    assert 1 - room_taken(plan, 1).mean() / 512 < 0.001
    in_order = 1 - (sum(sizes) + len(sizes)) / (512 * rows_in_order(sizes, 512))
    assert in_order > 0.1  # what whole documents in the order of the text would leave


def rows_in_order(sizes: list[int], length: int) -> int:
    rows, left = 0, 0
    for size in sizes:
        for piece in [length - 1] * (size // (length - 1)) + [size % (length - 1)]:
            if piece and piece + 1 > left:
                rows, left = rows + 1, length
            left -= (piece + 1) * (piece > 0)
    return rows


def test_an_empty_text_has_no_rows() -> None:
    assert len(Documents(np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int64), 8, [], 0)) == 0


def texts_of(sizes: list[int]) -> tuple[Texts, NDArray[np.uint16]]:
    """Documents of tokens below `VOCABULARY`, and the same as one array."""
    tokens = np.random.default_rng(len(sizes)).integers(10, VOCABULARY, sum(sizes)).astype(np.uint16)
    return [piece.tolist() for piece in np.split(tokens, np.cumsum(sizes)[:-1])], tokens


def pieces(ids: list[int], positions: list[int]) -> Texts:
    cuts = [i for i, position in enumerate(positions) if position == 0] + [len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(cuts)]


@given(lengths, st.integers(5, 30), st.integers(0, 2), st.integers(0, 1))
def test_rows_of_documents(sizes: list[int], length: int, sinks: int, more: int) -> None:
    reserve = sinks + more
    texts, tokens = texts_of(sizes)
    documents = Documents(tokens, starts_of(sizes), length, SINKS[:sinks], reserve)
    expected = [text[i : i + length - reserve] for text in texts for i in range(0, len(text), length - reserve)]
    found: Texts = []
    for row in range(len(documents)):
        read = {name: values[0].tolist() for name, values in documents.read(np.array([row])).items()}
        assert {len(values) for values in read.values()} == {length}
        for ids, labels, positions in zip(
            *(pieces(read[name], read["position_ids"]) for name in ("input_ids", "labels", "position_ids")), strict=True
        ):
            assert positions == list(range(len(ids)))
            if set(labels) == {IGNORED} and set(ids) == {0}:
                continue  # padding
            assert ids[:sinks] == SINKS[:sinks]
            silent = sinks or 1  # without sinks, nothing predicts the first token
            assert labels == [IGNORED] * silent + ids[silent:]
            found.append(ids[sinks:])
    assert sorted(found) == sorted(expected)


@given(lengths, st.integers(6, 30))
def test_every_kind_sees_the_same_text_in_the_same_rows(sizes: list[int], length: int) -> None:
    texts, tokens = texts_of(sizes)
    kinds = [Documents(tokens, starts_of(sizes), length, SINKS[:sinks], 2) for sinks in range(3)]
    assert len({len(kind) for kind in kinds}) == 1
    rows = np.arange(len(kinds[0]))[::-1]
    seen = []
    for kind in kinds:
        ids = kind.read(rows)["input_ids"]
        seen.append([[token for token in row if 0 < token < 900] for row in ids.tolist()])
    assert seen[0] == seen[1] == seen[2] and sum(map(len, seen[0])) == sum(map(len, texts))


SIZES = [9, 30, 4, 1, 17, 12, 3, 8, 26, 5]


def packed(sinks: int) -> dict[str, Tensor]:
    """Rows of 24 positions that hold several documents each, pieces of a longer one, and padding."""
    documents = Documents(texts_of(SIZES)[1], starts_of(SIZES), 24, [2, 3][:sinks], sinks)
    batch = {name: torch.from_numpy(values) for name, values in documents.read(np.arange(len(documents))).items()}
    assert (batch["position_ids"] == 0).sum() > len(documents) + 2
    return batch


def summed_nll(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("sinks", [0, 1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@torch.no_grad()
def test_documents_in_a_row_are_as_documents_alone(name: str, sinks: int) -> None:
    model, batch = tiny_model(name), packed(sinks)
    together = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    nll, compared = torch.zeros(()), 0
    for row in range(len(together)):
        for place in pieces(list(range(24)), batch["position_ids"][row].tolist()):
            ids, labels = batch["input_ids"][row : row + 1, place], batch["labels"][row : row + 1, place]
            alone = model(ids, use_cache=False).logits
            assert (alone - together[row, place]).abs().max() < 1e-5 * alone.abs().max().clamp(min=1)
            nll += summed_nll(alone, labels)
            compared += int((labels[:, 1:] != IGNORED).sum())
    assert compared == int((batch["labels"][:, 1:] != IGNORED).sum())
    assert compared == sum(SIZES) - (0 if sinks else text_pieces(batch))
    assert float(nll) == pytest.approx(float(summed_nll(together, batch["labels"])), rel=1e-5)


def text_pieces(batch: dict[str, Tensor]) -> int:
    """How many pieces are no padding."""
    return int(((batch["input_ids"] != 0) & (batch["position_ids"] == 0)).sum())


@pytest.mark.parametrize(("cache", "mask"), [(True, False), (False, True)])
@torch.no_grad()
def test_a_cache_or_a_mask_lets_documents_see_each_other(cache: bool, mask: bool) -> None:
    """Why the model is called without either: transformers then goes by positions."""
    model, batch = tiny_model("llama").train(), packed(1)
    arguments = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    right = model(**arguments, use_cache=False).logits
    all_ones = torch.ones_like(batch["input_ids"]) if mask else None
    assert (model(**arguments, use_cache=cache, attention_mask=all_ones).logits - right).abs().max() > 0.1
