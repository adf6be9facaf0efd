"""Text that comes piece by piece is the text of all tokens at once, and waits for whole characters only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_subjects import small_subject
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sinktrain.base.errors import UserError
from sinktrain.generation.detokenizer import PATIENCE, Detokenizer

HARD = "naïve 世界 👩‍👩‍👧 \n\n  İstanbul é\u200d🇫🇷 the cat<|endoftext|>"


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int], before: list[int], special: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, before, special)
    return [*map(detokenizer.step, ids), detokenizer.finish()]


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """Bytes as fallback and spaces as part of the words, as Llama 2 has it: the first space of a text is dropped."""
    words = ["<unk>", "▁", "▁the", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.just(HARD), st.text(max_size=40)), special=st.booleans())
def test_byte_level(text: str, special: bool, tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids, [], special)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=not special)
    assert "�" in text or not any("�" in piece for piece in found)


def test_a_character_comes_when_it_is_whole(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = tokenizer.encode("世a", add_special_tokens=False)
    assert len(ids) == 4
    assert pieces(tokenizer, ids, []) == ["", "", "世", "a", ""]
    assert pieces(tokenizer, ids[:2], []) == ["", "", "�"]


@given(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_fallback_to_bytes(numbers: list[int], sentencepiece: PreTrainedTokenizerFast) -> None:
    words = ([2], [3], [4], [5 + byte for byte in "世".encode()], [5 + byte for byte in "é".encode()], [1])
    ids = [token for number in numbers for token in words[number]]
    assert "".join(pieces(sentencepiece, ids, [])) == sentencepiece.decode(ids)


def test_a_first_word_after_a_prompt_keeps_its_space(sentencepiece: PreTrainedTokenizerFast) -> None:
    assert pieces(sentencepiece, [3], []) == ["cat", ""]
    assert pieces(sentencepiece, [3], [2]) == [" cat", ""]


def test_babble_of_bytes_is_written_and_not_kept(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    (lead, *_) = tokenizer.encode("世", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    written = 0
    for _ in range(10 * PATIENCE):
        written += len(detokenizer.step(lead))
        assert len(detokenizer.waiting) <= PATIENCE
    assert written == 10 * PATIENCE
    assert detokenizer.step(tokenizer.encode("a", add_special_tokens=False)[0]).endswith("a")


def test_a_tokenizer_of_another_kind_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Detokenizer(object())  # type: ignore[arg-type]
    assert small_subject(tokenizer_folder).tokenizer.backend_tokenizer is not None
