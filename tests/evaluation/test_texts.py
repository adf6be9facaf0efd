"""A text's first tokens are had in little memory, and are those that its documents have as a whole."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import WORDS
from transformers import AutoTokenizer

import sinktrain.data.sources as sources
import sinktrain.data.tokenizers as tokenizers
from sinktrain.evaluation.texts import load_text


def lines(count: int, seed: int) -> str:
    """Lines of some words."""
    chosen = random.Random(seed)
    return "\n".join(" ".join(chosen.choices(WORDS, k=9)) for _ in range(count))


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are cut and batched far below the sizes that are fast."""
    monkeypatch.setattr(tokenizers, "_PIECE", 100)
    monkeypatch.setattr(tokenizers, "_BATCH", 300)


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize(("skip", "tokens"), [(0, 1), (0, 1000), (13, 2000), (1500, 1000)])
def test_the_first_tokens_are_those_of_whole_documents(
    skip: int, tokens: int, tokenizer_folder: Path, tmp_path: Path
) -> None:
    parts = [lines(60, 0) + "\n", lines(1, 1) + "\n", lines(150, 2)]
    (tmp_path / "text.txt").write_text("\f\n".join(parts))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = load_text(str(tmp_path / "text.txt"), tokenizer, tokens, skip)
    whole = [[*tokenizer.encode(part, add_special_tokens=False), tokenizer.eos_token_id] for part in parts]
    expected = [(token, number) for number, part in enumerate(whole) for token in part][skip : skip + tokens]
    assert list(zip(found.tokens.tolist(), found.document_of.tolist(), strict=True)) == expected
    assert tokens < 1000 or len({number for _, number in expected}) == (1 if skip == 1500 else 3)


@pytest.mark.usefixtures("in_small_pieces")
def test_no_more_is_read_than_is_wanted(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def documents(name: str) -> Iterator[str]:
        for seed in range(1000):
            taken.append(seed)
            yield lines(30, seed)

    monkeypatch.setattr(sources, "documents", documents)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert len(load_text("anything", tokenizer, 100).tokens) == 100
    assert len(taken) < 20


PEAK = (
    "import resource, sys; from sinktrain.cli import main; done = main(sys.argv[1:]); "
    "print(done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens(model_folder: Path, tmp_path: Path) -> None:
    """But for what is known of each: its id, and 4 bytes a row; less than 130 bytes a token."""
    (tmp_path / "text.txt").write_text("\n\f\n".join(lines(200, seed) for seed in range(240)))
    peak = {}
    for tokens in (8192, 600_000):
        words = ["evaluate", "--model.name", str(model_folder), "--text", str(tmp_path / "text.txt"), "--tokens",
                 str(tokens), "--out", str(tmp_path / str(tokens)), "--caches", "0+64 1+63 4+60"]  # fmt: skip
        said = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=True).stdout
        status, kilobytes = said.splitlines()[-1].split()
        assert status == "0"
        peak[tokens] = 1024 * int(kilobytes)
    assert peak[600_000] - peak[8192] < 130 * (600_000 - 8192)
