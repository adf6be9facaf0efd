"""A preparation that is killed: what was done is kept, what was half done is dropped, and the result is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_talks import content
from killed_preparation import killed_preparation

from sinktrain.base.errors import UserError
from sinktrain.base.folders import kept_folder
from sinktrain.data import prepare as verb
from sinktrain.data import shards
from sinktrain.data.prepare import prepare


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 documents of 40 to 158 words, one of them empty."""
    lines = [" ".join(f"word{(7 * i + j) % 97}" for j in range(40 + 2 * i)) for i in range(60)]
    lines[31] = " "
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def killed(source: Path, out: Path, where: str, times: int) -> dict[str, Any]:
    """The last line of the journal that a killed run left."""
    return killed_preparation(source, out, where, times, 150, train_tokenizer=300)


@pytest.mark.parametrize(("where", "times"), [("line", 1), ("line", 4), ("write", 2), ("write", 45)])
def test_a_killed_run_goes_on_and_gives_the_same(
    source: Path, tmp_path: Path, where: str, times: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = content(prepare(str(source), tmp_path / "whole", train_tokenizer=300))
    assert {"train.bin", "validation.bin", "manifest.json", "tokenizer/tokenizer.json"} <= whole.keys()
    done = killed(source, tmp_path / "out", where, times)
    monkeypatch.setattr(shards, "_SHARD", 150)
    monkeypatch.setattr(verb, "train_bpe", None if done else verb.train_bpe)  # not trained a second time
    encoded: list[str] = []
    real = shards.Shards.close_document
    monkeypatch.setattr(shards.Shards, "close_document", lambda self, entry: (encoded.append(""), real(self, entry))[1])
    capsys.readouterr()
    again = content(prepare(str(source), tmp_path / "out", train_tokenizer=300))
    assert len(encoded) == 59 - sum(done.get("documents", [0, 0]))
    assert ("Going on from where a run was stopped" in capsys.readouterr().out) is bool(done)
    assert again == whole
    assert not list(tmp_path.glob(".out*"))


def test_other_settings_do_not_go_on(source: Path, tmp_path: Path) -> None:
    killed(source, tmp_path / "out", "line", 4)
    with pytest.raises(UserError, match=r"begun with other settings \(seed\).*--overwrite true"):
        prepare(str(source), tmp_path / "out", train_tokenizer=300, seed=1)
    lines = source.read_text().splitlines()
    lines[0] = lines[0].replace("word0 ", "WORD0 ")  # of the same size
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="is not what it was"):
        prepare(str(source), tmp_path / "out", train_tokenizer=300)
    prepare(str(source), tmp_path / "out", train_tokenizer=300, seed=1, overwrite=True)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]["seed"] == 1


def test_a_damaged_draft_is_begun_anew(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = content(prepare(str(source), tmp_path / "whole", train_tokenizer=300))
    killed(source, tmp_path / "out", "line", 4)
    (tmp_path / ".out.draft" / "result" / "train.bin").write_bytes(b"")
    assert content(prepare(str(source), tmp_path / "out", train_tokenizer=300)) == whole
    assert "is damaged" in capsys.readouterr().out


def test_two_at_once_do_not_write_into_one_folder(source: Path, tmp_path: Path) -> None:
    with kept_folder(tmp_path / "out", "--out"), pytest.raises(UserError, match="is being made by another process"):
        prepare(str(source), tmp_path / "out", train_tokenizer=300)
