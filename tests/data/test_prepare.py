"""The verb `prepare` and the folder it makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint, load_tokenizer
from sinktrain.data import prepare as verb
from sinktrain.data.prepare import prepare
from sinktrain.data.prepared import SPLITS, PreparedText
from sinktrain.data.tokenizers import train_bpe

TEXTS = [f"Document {i} says: {i * i}, naïve, 😀.\n\n  And {'more ' * (i % 5)}\n" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(TEXTS, 300).save_pretrained(folder)
    return str(folder)


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts_of(folder: Path, tokenizer: str) -> dict[str, list[str]]:
    """What the tokens of a folder spell, document by document; every one must end with the end of text."""
    text, spell = PreparedText(folder), load_tokenizer(tokenizer)
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        documents = np.split(text.tokens(split), text.documents(split)[1:])
        assert all(ids[-1] == spell.eos_token_id for ids in documents)
        found[split] = [spell.decode(ids[:-1].tolist()) for ids in documents]
    return found


def refused(tmp_path: Path, source: str = "stdlib", **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        prepare(source, tmp_path / "parent" / "out", **options)
    sentence = str(raised.value)
    assert sentence.startswith("--") and sentence.endswith(".") and "\n" not in sentence
    assert not list(tmp_path.rglob("parent/*")) and not list(tmp_path.rglob("parent/.*"))
    return sentence


def test_tokens_spell_every_text(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", [*TEXTS, "", " \n"])
    out = prepare(source, tmp_path / "out", tokenizer=tokenizer)
    found = texts_of(out, tokenizer)
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS) and all(found.values())
    manifest = PreparedText(out).manifest
    for split in SPLITS:
        assert manifest["splits"][split] == {
            "documents": len(found[split]),
            "tokens": len(PreparedText(out).tokens(split)),
            "characters": sum(map(len, found[split])),
            "bytes": sum(len(text.encode()) for text in found[split]),
        }
    assert manifest["empty_documents"] == 2
    assert manifest["tokenizer"]["fingerprint"] == fingerprint(load_tokenizer(tokenizer))
    assert "train.bin" in manifest["files"] and not (out / "all.bin").exists()
    said = capsys.readouterr().out
    assert said.endswith(f"Wrote {out}\n") and "2 empty documents skipped" in said


@given(st.permutations(range(12)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_does_not_depend_on_order(tmp_path: Path, tokenizer: str, order: list[int]) -> None:
    expected = texts_of(
        prepare(write(tmp_path / "a.jsonl", TEXTS[:12]), tmp_path / "a", tokenizer, overwrite=True), tokenizer
    )
    source = write(tmp_path / "b.jsonl", [TEXTS[i] for i in order])
    found = texts_of(prepare(source, tmp_path / "b", tokenizer, overwrite=True), tokenizer)
    for split in SPLITS:
        assert set(found[split]) == set(expected[split])
        assert found[split] == [text for text in (TEXTS[i] for i in order) if text in expected[split]]


def test_same_again_and_another_seed(tmp_path: Path, tokenizer: str) -> None:
    source = write(tmp_path / "a.jsonl", TEXTS)
    first, again, other = (
        PreparedText(prepare(source, tmp_path / str(run), tokenizer, seed=seed)).manifest
        for run, seed in enumerate((0, 0, 1))
    )
    assert first["files"] == again["files"]
    assert first["files"]["train.bin"]["sha256"] != other["files"]["train.bin"]["sha256"]


@pytest.mark.parametrize("text", ["line\n" * 100, "x" * 1000, "naïve 😀" * 50])
def test_tail_of_a_single_document(
    tmp_path: Path, tokenizer: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(text)
    out = prepare(str(tmp_path / "a.txt"), tmp_path / "out", tokenizer, validation_fraction=0.1)
    found = texts_of(out, tokenizer)
    assert found["train"] + found["validation"] == [text[: round(len(text) * 0.9)], text[round(len(text) * 0.9) :]]
    assert "one document only" in capsys.readouterr().out


def test_trained_tokenizer_lies_in_the_folder(tmp_path: Path) -> None:
    out = prepare(write(tmp_path / "a.jsonl", TEXTS), tmp_path / "out", train_tokenizer=280)
    text = PreparedText(out)
    assert text.tokenizer == str(out / "tokenizer") and len(load_tokenizer(text.tokenizer)) == 280
    text.check_tokenizer(fingerprint(load_tokenizer(text.tokenizer)))
    found = texts_of(out, text.tokenizer)
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)


def test_max_documents_counts_those_with_text(tmp_path: Path, tokenizer: str) -> None:
    out = prepare(write(tmp_path / "a.jsonl", ["", *TEXTS]), tmp_path / "out", tokenizer, max_documents=7)
    found = texts_of(out, tokenizer)
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS[:7])


def word_tokenizer(folder: Path, vocabulary: int) -> str:
    """One of any size, without an end of text."""
    backend = Tokenizer(models.WordLevel({"?": 0, "last": vocabulary - 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32), (200_000, np.uint32)])
def test_dtype_holds_the_vocabulary(tmp_path: Path, vocabulary: int, dtype: type, capsys: Any) -> None:
    source = write(tmp_path / "a.jsonl", ["last one", "the last"])
    out = prepare(source, tmp_path / "out", word_tokenizer(tmp_path / "words", vocabulary))
    for split in SPLITS:
        tokens = PreparedText(out).tokens(split)
        assert isinstance(tokens, np.memmap) and tokens.dtype == dtype and sorted(tokens) == [0, vocabulary - 1]
        assert PreparedText(out).documents(split).tolist() == [0]
        assert PreparedText(out).documents(split).dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 1
    assert "no end-of-text token" in capsys.readouterr().out


def test_bad_options(tmp_path: Path, tokenizer: str) -> None:
    assert "--train_tokenizer" in refused(tmp_path)
    assert "--train_tokenizer" in refused(tmp_path, tokenizer=tokenizer, train_tokenizer=300)
    assert "--train_tokenizer 5:" in refused(tmp_path, train_tokenizer=5)
    assert "--validation_fraction 0" in refused(tmp_path, tokenizer=tokenizer, validation_fraction=0)
    assert "--validation_fraction 1.5" in refused(tmp_path, tokenizer=tokenizer, validation_fraction=1.5)
    assert "--max_documents 0" in refused(tmp_path, tokenizer=tokenizer, max_documents=0)
    assert "--tokenizer ./nowhere" in refused(tmp_path, tokenizer="./nowhere")
    assert "no such file" in refused(tmp_path, "missing.txt", tokenizer=tokenizer)


@pytest.mark.parametrize("how", ["tokenizer", "train_tokenizer"])
def test_source_without_text(tmp_path: Path, tokenizer: str, how: str) -> None:
    options: dict[str, Any] = {how: tokenizer if how == "tokenizer" else 300}
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    assert "holds no text" in refused(tmp_path, str(tmp_path / "blank.txt"), **options)
    assert "same text" in refused(tmp_path, write(tmp_path / "a.jsonl", ["one"] * 3), **options)
    (tmp_path / "short.txt").write_text("x")
    assert "single character" in refused(tmp_path, str(tmp_path / "short.txt"), **options)


def test_existing_folder_is_kept_unless_told(tmp_path: Path, tokenizer: str) -> None:
    source = write(tmp_path / "a.jsonl", TEXTS)
    out = prepare(source, tmp_path / "out", tokenizer)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"--out .*exists already"):
        prepare(source, out, tokenizer, seed=1)
    assert (out / "manifest.json").read_bytes() == before
    prepare(source, out, tokenizer, seed=1, overwrite=True)
    assert PreparedText(out).manifest["source"]["seed"] == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_stopped_in_the_middle(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Nothing new is left, and what was there before is as it was."""
    source = write(tmp_path / "a.jsonl", TEXTS)
    out = prepare(source, tmp_path / "parent" / "out", tokenizer)
    before = {path: path.read_bytes() for path in out.rglob("*")}

    def breaks(*_: Any) -> Iterator[str]:
        yield from TEXTS
        raise error

    monkeypatch.setattr(verb, "documents", breaks)
    for name in ("out", "other"):
        with pytest.raises(error):
            prepare(source, tmp_path / "parent" / name, tokenizer, overwrite=True)
    assert list((tmp_path / "parent").iterdir()) == [out]
    assert {path: path.read_bytes() for path in out.rglob("*")} == before


def test_folder_that_is_not_right(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(UserError, match="run `sinktrain prepare`"):
        PreparedText(tmp_path / "nowhere")
    out = prepare(write(tmp_path / "a.jsonl", TEXTS), tmp_path / "out", tokenizer)
    with pytest.raises(UserError, match="which is not the model's"):
        PreparedText(out).check_tokenizer("0" * 64)
    PreparedText(out).check_files()
    content = bytearray((out / "train.bin").read_bytes())
    content[5] ^= 1
    (out / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"^--data\.path .*: its train\.bin has changed"):
        PreparedText(out).check_files()
    (out / "train.bin").write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"its train\.bin has [\d,]+ bytes where"):
        PreparedText(out)
    (out / "train.bin").unlink()
    with pytest.raises(UserError, match=r"its train\.bin is missing"):
        PreparedText(out)
    (out / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="version 99"):
        PreparedText(out)
    (out / "manifest.json").write_text('{"schema"')
    with pytest.raises(UserError, match="damaged"):
        PreparedText(out)
