"""Samples that are shown are those of a run, marked where they are trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from chat_talks import Model, content, fit

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_tokenizer
from sinktrain.data import PreparedText, SinkDataModule
from sinktrain.data.packing import IGNORED
from sinktrain.data.prepare import prepare
from sinktrain.data.showing import OPEN, first_batch, in_brackets, parts_of


@pytest.fixture(scope="module")
def tokenizer(chatty: str) -> str:
    return chatty


@pytest.fixture(scope="module")
def folder(talked: Path) -> Path:
    return talked


def test_samples_that_are_shown_are_those_of_a_run(
    folder: Path, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folder.parent / "talks.jsonl")
    before = content(folder)
    prepare(source, folder, tokenizer, chat=True, validation_fraction=0.2, show=3)
    said = capsys.readouterr().out
    assert content(folder) == before and "Tokenized" not in said and said.count("--- sample ") == 3
    model = Model(tokenizer)
    fit(model, tmp_path, SinkDataModule(str(folder), 512, 3, packing="document"), steps=1)
    plain = load_tokenizer(tokenizer)
    for row, shown in zip(range(3), said.split("--- sample ")[1:], strict=True):
        ids, labels = (model.seen[0][name][row] for name in ("input_ids", "labels"))
        lines = shown.split("\n", 1)[1]
        told = model.tokenizer.decode(
            ids[: int((ids != 0).nonzero()[-1]) + 1].tolist(), clean_up_tokenization_spaces=False
        )
        unmarked = lines.replace("⟦", "").replace("⟧", "").split("(")[0]
        lines_of = [text.rstrip("\n").replace("\n<sink>", "<sink>") for text in (unmarked, told)]
        assert lines_of[0] == lines_of[1] and "<|im_end|>" in told
        spoken = [part.split("⟧")[0] for part in lines.split("⟦")[1:]]
        trained = labels[labels != IGNORED].tolist()
        assert "".join(spoken) == plain.decode(trained, clean_up_tokenization_spaces=False)
    with pytest.raises(UserError, match="exists already"):
        prepare(source, folder, tokenizer, chat=True, validation_fraction=0.3, show=3)


def test_plain_text_is_shown_too(prepared_folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PreparedText(prepared_folder)
    source = text.manifest["source"]["name"]
    prepare(source, prepared_folder, str(model_folder), validation_fraction=0.3, show=2)
    said = capsys.readouterr().out
    assert said.count("<sink>⟦") == 2 and said.count(OPEN) == 3  # the head names them once
    first = said.split("⟦")[2].split("⟧")[0]
    whole = load_tokenizer(str(model_folder)).decode(text.tokens("train").tolist(), clean_up_tokenization_spaces=False)
    assert len(first) > 500 and first in whole


def test_what_is_shown_gives_a_terminal_no_orders(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("the \x1b[31m cat\x07 naïve 😀\tsat\n" * 4)
    out = prepare(str(tmp_path / "a.txt"), tmp_path / "out", tokenizer)
    text, spell = PreparedText(out), load_tokenizer(tokenizer)
    batch = first_batch(text, 1, 999)
    row = {name: column[0] for name, column in batch.items() if column.ndim == 2}
    shown = in_brackets(list(parts_of(row, spell, 999)))
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[31m cat\\x07 naïve 😀\tsat\n" in shown
    assert len(batch["labels"]) == 1  # a text shorter than a usual sample


def test_colours_on_a_terminal(folder: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    source = str(folder.parent / "talks.jsonl")
    prepare(source, folder, tokenizer, chat=True, validation_fraction=0.2, show=1)
    said = capsys.readouterr().out
    assert OPEN not in said and "\x1b[1;32m" in said and "\x1b[1;35m<sink>" in said
