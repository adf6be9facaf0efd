"""The trained tokenizer, and encoding in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint, load_tokenizer
from sinktrain.data import tokenizers
from sinktrain.data.tokenizers import END_OF_TEXT, cut_at_lines, encode, train_bpe

PROSE = (
    "The first token of a stream is seen by all that come after it.\nSo attention goes there.\n\n\tSpare or not.\n" * 9
)
U16 = np.dtype(np.uint16)
TOKENIZER = train_bpe([PROSE], 300)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    ids = [int(i) for piece, _ in encode(TOKENIZER, [text], U16) for i in piece]
    if END_OF_TEXT not in text:
        assert TOKENIZER.eos_token_id not in ids
    assert TOKENIZER.decode(ids) == text


def test_learns_merges_and_keeps_its_size() -> None:
    assert len(TOKENIZER) == 300 and TOKENIZER.eos_token == END_OF_TEXT
    assert len(TOKENIZER(PROSE)["input_ids"]) < len(PROSE) / 1.5
    assert len(train_bpe(["ab"], 1000)) == 258  # 256 bytes, the end, and one pair


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert fingerprint(loaded) == fingerprint(TOKENIZER) and loaded.eos_token_id == TOKENIZER.eos_token_id
    assert loaded(PROSE)["input_ids"] == TOKENIZER(PROSE)["input_ids"]


def test_no_room() -> None:
    with pytest.raises(UserError, match="--train_tokenizer 256"):
        train_bpe([PROSE], 256)


@given(st.text("ab \n\t"), st.integers(1, 20))
def test_pieces_hold_the_text(text: str, size: int) -> None:
    pieces = list(cut_at_lines(text, size))
    assert "".join(pieces) == text
    assert all(len(piece) >= size for piece in pieces[:-1])


@given(st.lists(st.text("ab .\n\t"), min_size=1), st.integers(1, 6))
def test_pieces_have_the_tokens_of_the_whole(texts: list[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE", size)
        patch.setattr(tokenizers, "_BATCH", 10)
        joined: list[list[int]] = [[]]
        for ids, is_last in encode(TOKENIZER, texts, U16):
            joined[-1] += ids.tolist()
            if is_last:
                joined.append([])
    assert joined == [TOKENIZER(text)["input_ids"] for text in texts] + [[]]


def test_tokenizer_that_opens_every_text_with_a_space_is_not_given_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁a": 0, "\nb": 1, "▁": 2, "b": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    metaspace = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    monkeypatch.setattr(tokenizers, "_PIECE", 2)
    whole = metaspace("a\nb\nb\nb", add_special_tokens=False)["input_ids"]
    pieces = [(ids.tolist(), is_last) for ids, is_last in encode(metaspace, ["a\nb\nb\nb"], U16)]
    assert pieces == [(whole, True)]
