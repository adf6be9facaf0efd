"""Conversations from a file to batches: only the assistant's tokens have labels, kills and copies change nothing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from chat_templates import CHATML, GENERATION, chat_tokenizer
from conftest import WORDS
from hypothesis import given
from hypothesis import strategies as st

from sinktrain.base.errors import UserError
from sinktrain.base.models import fingerprint, load_tokenizer
from sinktrain.cli import main
from sinktrain.data import PreparedText, SinkDataModule
from sinktrain.data.packing import IGNORED, Documents
from sinktrain.data.plan import plan_rows
from sinktrain.data.prepare import prepare
from sinktrain.data.prepared import SPLITS
from sinktrain.data.showing import OPEN, first_batch, in_brackets, parts_of
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.tokenizer import add_sink_tokens, save_tokenizer

Messages = list[dict[str, str]]


def talks(count: int, seed: int = 0) -> list[Messages]:
    """Some of one turn, some longer than a sample of 64."""
    rng = random.Random(seed)

    def some() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice([1, 3, 8, 20])))

    return [
        [{"role": role, "content": some()} for _ in range(rng.choice([1, 1, 2, 5])) for role in ("user", "assistant")]
        for _ in range(count)
    ]


def write(path: Path, rows: list[Any], field: str = "messages") -> str:
    path.write_text("".join(json.dumps({field: row}) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chatty")
    chat_tokenizer(tokenizer_folder, CHATML).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("talks")
    return prepare(write(root / "talks.jsonl", talks(80)), root / "out", tokenizer, chat=True, validation_fraction=0.2)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pairs_of(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Tokens and whether they are trained on, of every conversation of both splits."""
    text, found = PreparedText(folder), []
    for split in SPLITS:
        cuts, trained = text.documents(split)[1:], text.trained(split)
        assert trained is not None
        parts = zip(np.split(text.tokens(split), cuts), np.split(trained, cuts), strict=True)
        found += [(ids.tolist(), flags.tolist()) for ids, flags in parts]
    return found


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


KILLED = """
import os, signal, sys
from pathlib import Path
from sinktrain.data import journal, shards
from sinktrain.data.prepare import prepare

shards._SHARD = 400
where, times = sys.argv[4], int(sys.argv[5])
owner, name = {"line": (journal.Journal, "add"), "write": (shards.Shards, "write")}[where]
real, calls = getattr(owner, name), []

def counted(self, *given):
    real(self, *given)
    calls.append(1)
    if len(calls) == times:
        if where == "write":
            for file in (*self._files, *self._trained, self._records):
                file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, counted)
prepare(sys.argv[1], Path(sys.argv[2]), sys.argv[3], chat=True, validation_fraction=0.2)
"""


@pytest.mark.parametrize(("where", "times"), [("line", 3), ("write", 45)])
def test_a_killed_run_goes_on_and_gives_the_same(
    folder: Path, tokenizer: str, tmp_path: Path, where: str, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folder.parent / "talks.jsonl")
    command = [sys.executable, "-c", KILLED, source, str(tmp_path / "out"), tokenizer, where, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = (tmp_path / ".out.draft" / "result" / "train.trained.bin").stat().st_size
    assert left and (where == "line" or left > json.loads(
        (tmp_path / ".out.draft" / "notes" / "journal.jsonl").read_text().splitlines()[-1])["tokens"][0])  # fmt: skip
    out = prepare(source, tmp_path / "out", tokenizer, chat=True, validation_fraction=0.2)
    assert "Going on from where a run was stopped" in capsys.readouterr().out
    assert content(out) == content(folder)


def test_another_template_does_not_go_on(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    source, mine = str(folder.parent / "talks.jsonl"), str(shutil.copytree(tokenizer, tmp_path / "mine"))
    command = [sys.executable, "-c", KILLED, source, str(tmp_path / "out"), mine, "line", "3"]
    subprocess.run(command, capture_output=True, timeout=120)
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


class Model(L.LightningModule):
    """Has what a DataModule asks of the model, and keeps every batch."""

    def __init__(self, tokenizer: str, sinks: int = 1) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer_fingerprint, self.trained_length = fingerprint(self.tokenizer), None
        self.sink_ids = add_sink_tokens(self.tokenizer, SinkConfig(count=sinks))
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        assert (batch["labels"] != IGNORED).any()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Model, root: Path, data: SinkDataModule, resume: Path | None = None, steps: int = 4) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=root, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=resume, weights_only=False if resume else None)
    return trainer


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
