"""Batches of conversations: labels where the assistant speaks, sinks in front, rows that are planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_talks import Model, fit, pairs_of
from hypothesis import given
from hypothesis import strategies as st

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_tokenizer
from sinktrain.data import SinkDataModule
from sinktrain.data.packing import IGNORED, Documents
from sinktrain.data.plan import plan_rows


@pytest.fixture(scope="module")
def tokenizer(chatty: str) -> str:
    return chatty


@pytest.fixture(scope="module")
def folder(talked: Path) -> Path:
    return talked


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(lengths, st.integers(5, 30), st.integers(0, 2), st.integers(0, 2**32))
def test_rows_of_conversations(sizes: list[int], length: int, sinks: int, seed: int) -> None:
    """As those of documents, but for labels that are gone, and pieces without any, which are gone too."""
    rng = np.random.default_rng(seed)
    tokens = np.arange(1, sum(sizes) + 1, dtype=np.uint16)  # every token is another
    trained = (rng.random(len(tokens)) < rng.choice([0.02, 0.3, 1])).astype(np.uint8)
    starts = np.cumsum([0, *sizes[:-1]]).astype(np.int64)
    names = [60_000, 60_001][:sinks]
    rows = Documents(tokens, starts, length, names, 2, trained)
    read = rows.read(np.arange(len(rows)))
    ids, labels, positions = (read[name].ravel() for name in ("input_ids", "labels", "position_ids"))
    pieces = [
        list(range(start + cut + 1, start + min(cut + length - 2, size) + 1))
        for start, size in zip(starts.tolist(), sizes, strict=True)
        for cut in range(0, size, length - 2)
    ]
    kept = [piece for piece in pieces if trained[piece[0] - 1 : piece[-1]].any()]
    joined = [token for piece in kept for token in piece]
    assert sorted(token for token in ids.tolist() if 0 < token < 60_000) == sorted(joined)
    firsts = {piece[0] for piece in kept} if not sinks else set()
    wanted = {token for token in joined if trained[token - 1]} - firsts
    assert set(labels[labels != IGNORED].tolist()) == wanted
    assert (labels[labels != IGNORED] == ids[labels != IGNORED]).all()
    assert (positions[np.isin(ids, [piece[0] for piece in kept])] == sinks).all()
    plans = [plan_rows(starts, len(tokens), length, 2, given) for given in (np.ones_like(trained), None)]
    assert all(np.array_equal(*pair) for pair in zip(vars(plans[0]).values(), vars(plans[1]).values(), strict=True))


def test_batches_have_labels_where_the_assistant_speaks(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    model = Model(tokenizer, sinks=2)
    fit(model, tmp_path, SinkDataModule(str(folder), 200, 4, packing="document", validation_batches=1))
    known = {tuple(ids): flags for ids, flags in pairs_of(folder)}
    whole = 0
    for batch in model.seen:
        for row in range(4):
            ids, labels, positions = (batch[name][row] for name in ("input_ids", "labels", "position_ids"))
            starts = torch.where(positions == 0)[0].tolist()
            for start, end in zip(starts, [*starts[1:], 200], strict=True):
                piece, mine = ids[start:end].tolist(), labels[start:end].tolist()
                if piece[:2] != model.sink_ids:
                    assert set(mine) == {IGNORED} and set(piece) == {0}
                elif (flags := known.get(tuple(piece[2:]))) is not None:
                    assert mine == [IGNORED] * 2 + [t if f else IGNORED for t, f in zip(piece[2:], flags, strict=True)]
                    whole += 1
    assert whole > 10


def test_what_a_data_module_refuses(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--data\.packing chunk: would cut the conversations"):
        fit(Model(tokenizer), tmp_path, SinkDataModule(str(folder), 64, 4))
    small = load_tokenizer(tokenizer)  # as a base model's: the same words without the template's tokens
    few = Model(tokenizer)
    few.sink_ids = [small.convert_tokens_to_ids("<|im_start|>")]
    with pytest.raises(UserError, match="more special tokens than the model's"):
        fit(few, tmp_path, SinkDataModule(str(folder), 64, 4, packing="document"))


def test_going_on_with_other_labels_is_refused(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    fit(Model(tokenizer), tmp_path, SinkDataModule(str(copy), 64, 4, packing="document")).save_checkpoint(
        tmp_path / "a.ckpt"
    )
    fit(Model(tokenizer), tmp_path, SinkDataModule(str(copy), 64, 4, packing="document"), tmp_path / "a.ckpt", steps=5)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["train.trained.bin"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is another text than the one that the checkpoint"):
        fit(
            Model(tokenizer), tmp_path, SinkDataModule(str(copy), 64, 4, packing="document"), tmp_path / "a.ckpt",
            steps=5,
        )  # fmt: skip


def test_conversations_and_text_in_one_mixture(
    folder: Path, prepared_folder: Path, tokenizer: str, tmp_path: Path
) -> None:
    model = Model(tokenizer)
    both = {str(folder): 0.5, str(prepared_folder): 0.5}
    fit(model, tmp_path, SinkDataModule(None, 64, 8, packing="document", sources=both), steps=6)
    shares = {float((row != IGNORED).float().mean()) > 0.85 for batch in model.seen for row in batch["labels"]}
    assert shares == {True, False}
