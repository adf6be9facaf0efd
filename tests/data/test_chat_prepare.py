"""Conversations from a file to batches: only the assistant's tokens have labels, kills and copies change nothing."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_talks import Messages, content, pairs_of, talks, write
from chat_templates import CHATML, GENERATION, chat_tokenizer
from killed_preparation import killed_preparation

from sinktrain.base.errors import UserError
from sinktrain.base.models import load_tokenizer
from sinktrain.cli import main
from sinktrain.data import PreparedText
from sinktrain.data.prepare import prepare
from sinktrain.data.prepared import SPLITS
from sinktrain.data.showing import OPEN
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(chatty: str) -> str:
    return chatty


@pytest.fixture(scope="module")
def folder(talked: Path) -> Path:
    return talked


def expected(tokenizer: str, conversations: list[Messages]) -> list[tuple[list[int], list[int]]]:
    """By transformers alone: the same template with `{% generation %}` blocks."""
    plain = load_tokenizer(tokenizer)
    start, end = "{{ '<|im_start|>assistant\n' }}", "{{ m['content'] + '<|im_end|>' }}"
    said = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    blocks = CHATML.replace(
        said, f"{{% if m['role'] == 'assistant' %}}{start}{{% generation %}}{end}{{% endgeneration %}}{{{{ '\n' }}}}"
              f"{{% else %}}{said}{{% endif %}}")  # fmt: skip
    assert blocks != CHATML
    made = [
        plain.apply_chat_template(each, chat_template=blocks, return_dict=True, return_assistant_tokens_mask=True)
        for each in conversations
    ]
    return [(each["input_ids"], each["assistant_masks"]) for each in made]


def test_every_conversation_is_there_with_what_is_trained_on(folder: Path, tokenizer: str) -> None:
    assert sorted(pairs_of(folder)) == sorted(expected(tokenizer, talks(80)))
    text = PreparedText(folder)
    text.check_files()
    assert text.is_chat and text.manifest["schema"] == 2
    for split in SPLITS:
        trained = text.trained(split)
        assert trained is not None and isinstance(trained, np.memmap) and trained.dtype == np.uint8
        counts = text.manifest["splits"][split]
        assert counts["trained"] == int(trained.sum()) and 0 < counts["trained"] < counts["tokens"] == len(trained)
        told = load_tokenizer(tokenizer).decode(text.tokens(split).tolist(), clean_up_tokenization_spaces=False)
        assert counts["characters"] == counts["bytes"] == len(told)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
def test_every_kind_of_file(folder: Path, tokenizer: str, tmp_path: Path, kind: str) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"talk": talks(80)})
    source = tmp_path / f"talks.{kind}"
    if kind == "parquet":
        rows.to_parquet(source)
    elif kind == "saved":
        source = tmp_path / "hub"
        source.mkdir()
        rows.to_parquet(source / "train.parquet")
    else:
        rows.to_json(source, lines=kind == "jsonl")
    out = prepare(str(source), tmp_path / "out", tokenizer, chat=True, field="talk", validation_fraction=0.2)
    assert sorted(pairs_of(out)) == sorted(pairs_of(folder))


def test_rows_of_different_make(tokenizer: str, tmp_path: Path) -> None:
    """Messages of which some have more keys than others come as JSON from the reader; the words are the same."""
    some = talks(6)
    rows = [[{**each, **({"name": 5} if number % 2 else {})} for each in row] for number, row in enumerate(some)]
    out = prepare(write(tmp_path / "talks.jsonl", rows), tmp_path / "out", tokenizer, chat=True)
    assert sorted(pairs_of(out)) == sorted(expected(tokenizer, some))


def test_what_is_said_and_skipped(tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [*talks(10), [{"role": "user", "content": "the cat"}], None, []]
    random.Random(0).shuffle(rows)
    out = prepare(write(tmp_path / "talks.jsonl", rows), tmp_path / "out", tokenizer, chat=True)
    said = capsys.readouterr().out
    assert "3 conversations without a turn of the assistant skipped" in said and "only they are trained on" in said
    assert len(pairs_of(out)) == 10 and PreparedText(out).manifest["empty_documents"] == 3


def refused(tmp_path: Path, source: str, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        prepare(source, tmp_path / "parent" / "out", **{"chat": True, **options})
    sentence = str(raised.value)
    assert sentence.startswith("--") and sentence.endswith(".") and "\n" not in sentence
    assert not list(tmp_path.rglob("parent/*")) and not list(tmp_path.rglob("parent/.*"))
    return sentence


def test_refused(tmp_path: Path, tokenizer: str, tokenizer_folder: Path) -> None:
    good = write(tmp_path / "good.jsonl", talks(5))
    assert "has no chat template" in refused(tmp_path, good, tokenizer=str(tokenizer_folder))
    assert "--train_tokenizer: makes none" in refused(tmp_path, good, train_tokenizer=300)
    assert "stdlib is plain text" in refused(tmp_path, "stdlib", tokenizer=tokenizer)
    (tmp_path / "a.txt").write_text("the cat")
    assert "is plain text" in refused(tmp_path, str(tmp_path / "a.txt"), tokenizer=tokenizer)
    assert "has no field 'messages'; choose --field from text" in refused(
        tmp_path, write(tmp_path / "text.jsonl", ["the cat"], "text"), tokenizer=tokenizer
    )
    no_role = write(tmp_path / "no_role.jsonl", [*talks(2), [{"from": "gpt", "value": "a"}]])
    assert "row 3: its message 1 has no role" in refused(tmp_path, no_role, tokenizer=tokenizer)
    parts = write(tmp_path / "parts.jsonl", [*talks(2), [{"role": "user", "content": ["a"]}]])
    assert "row 3: its message 1 has a content that is not text" in refused(tmp_path, parts, tokenizer=tokenizer)
    text = write(tmp_path / "mixed.jsonl", [*talks(2), "the cat"])
    assert "row 3: its field 'messages' holds str, not a list" in refused(tmp_path, text, tokenizer=tokenizer)
    one = write(tmp_path / "one.jsonl", talks(1))
    assert "holds a single conversation" in refused(tmp_path, one, tokenizer=tokenizer)
    same = write(tmp_path / "same.jsonl", talks(1) * 3)
    assert "are the same text" in refused(tmp_path, same, tokenizer=tokenizer)
    asks = write(tmp_path / "asks.jsonl", [[{"role": "user", "content": "a"}]] * 2)
    assert "holds no conversation with a turn of the assistant" in refused(tmp_path, asks, tokenizer=tokenizer)
    assert "pass --chat true" in refused(tmp_path, good, tokenizer=tokenizer, chat=False, field="messages")
    assert "--show -1" in refused(tmp_path, good, tokenizer=tokenizer, show=-1)
    marks_nothing = chat_tokenizer(tokenizer_folder, GENERATION.replace("'assistant' %}", "'nobody' %}", 1))
    marks_nothing.save_pretrained(tmp_path / "nothing")
    assert "marks nothing that the assistant says" in refused(tmp_path, good, tokenizer=str(tmp_path / "nothing"))


def test_few_conversations_are_dealt_with_what_is_trained_on(tokenizer: str, tmp_path: Path) -> None:
    some = talks(2, seed=5)
    out = prepare(
        write(tmp_path / "talks.jsonl", some), tmp_path / "out", tokenizer, chat=True, validation_fraction=1e-6
    )
    assert sorted(pairs_of(out)) == sorted(expected(tokenizer, some))
    assert PreparedText(out).manifest["splits"]["validation"]["documents"] == 1 and not (out / "all.bin").exists()


@pytest.mark.parametrize(("where", "times"), [("line", 3), ("write", 45)])
def test_a_killed_run_goes_on_and_gives_the_same(
    folder: Path, tokenizer: str, tmp_path: Path, where: str, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folder.parent / "talks.jsonl")
    options = {"tokenizer": tokenizer, "chat": True, "validation_fraction": 0.2}
    done = killed_preparation(Path(source), tmp_path / "out", where, times, 400, **options)
    left = (tmp_path / ".out.draft" / "result" / "train.trained.bin").stat().st_size
    assert left and (where == "line" or left > done["tokens"][0])
    out = prepare(source, tmp_path / "out", tokenizer, chat=True, validation_fraction=0.2)
    assert "Going on from where a run was stopped" in capsys.readouterr().out
    assert content(out) == content(folder)


def test_another_template_does_not_go_on(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    source, mine = str(folder.parent / "talks.jsonl"), str(shutil.copytree(tokenizer, tmp_path / "mine"))
    options = {"tokenizer": mine, "chat": True, "validation_fraction": 0.2}
    killed_preparation(Path(source), tmp_path / "out", "line", 3, 400, **options)
    template = tmp_path / "mine" / "chat_template.jinja"
    template.write_text(template.read_text().replace("a cat", "a dog"))
    with pytest.raises(UserError, match=r"begun with other settings \(chat template\)"):
        prepare(source, tmp_path / "out", mine, chat=True, validation_fraction=0.2)


def test_an_exported_tokenizer_gives_the_same_tokens(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    exported = load_tokenizer(tokenizer)
    add_sink_tokens(exported, SinkConfig(count=2))
    save_tokenizer(exported, tmp_path / "exported")
    source = str(folder.parent / "talks.jsonl")
    out = prepare(source, tmp_path / "out", str(tmp_path / "exported"), chat=True, validation_fraction=0.2)
    for name in ("train.bin", "train.trained.bin", "validation.bin"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert PreparedText(out).manifest["tokenizer"] == {
        **PreparedText(folder).manifest["tokenizer"], "name": str(tmp_path / "exported")
    }  # fmt: skip


def test_files_that_are_not_right(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    whole = (copy / "train.trained.bin").read_bytes()
    (copy / "train.trained.bin").write_bytes(bytes([1 - whole[0]]) + whole[1:])
    with pytest.raises(UserError, match=r"its train\.trained\.bin has changed"):
        PreparedText(copy).check_files()
    (copy / "train.trained.bin").write_bytes(whole[1:])
    with pytest.raises(UserError, match=r"its train\.trained\.bin has"):
        PreparedText(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["train.trained.bin"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged"):
        PreparedText(copy)


def test_plain_text_is_of_the_first_schema(prepared_folder: Path) -> None:
    text = PreparedText(prepared_folder)
    assert text.manifest["schema"] == 1 and text.trained("train") is None and not text.is_chat
    assert not list(prepared_folder.glob("*.trained.bin"))


def test_the_verb(tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "talks.jsonl", talks(20))
    command = [
        "prepare",
        "--source",
        source,
        "--chat",
        "true",
        "--tokenizer",
        tokenizer,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--show", "1"]) == 0
    said = capsys.readouterr().out
    assert "conversations for training" in said and "sample 1 of 1" in said and f"{OPEN}" in said
