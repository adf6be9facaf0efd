"""Recall by distance: the distance is exact, and what has left the cache cannot be seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from transformers import AutoTokenizer

from sinktrain.cli import main
from sinktrain.evaluation.recall.asking import asked
from sinktrain.evaluation.recall.curve import _default_distances
from sinktrain.evaluation.recall.facts import FACT, QUESTION, Layout, lay_out, make_facts, needed_filler
from sinktrain.evaluation.recall.feeding import Streams
from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.streaming import CacheSpec, reference_nll

DISTANCES = [70, 81, 100]


def subject_of(tokenizer_folder: Path, sinks: list[int], **fields: int) -> Subject:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return Subject(
        tiny_model("llama", vocab_size=len(tokenizer), **fields), tokenizer, sinks, ModelOptions("tiny"), None
    )


def layout_of(subject: Subject, count: int = 3) -> Layout:
    facts = make_facts(subject, count, seed=1)
    each = needed_filler(facts, DISTANCES, 9)
    filler = torch.randint(10, 200, (count, each), generator=torch.Generator().manual_seed(0)).tolist()
    return lay_out(subject, facts, filler, DISTANCES, 9)


@pytest.mark.parametrize("sinks", [[], [7]])
def test_the_distance_is_exact(tokenizer_folder: Path, sinks: list[int]) -> None:
    subject = subject_of(tokenizer_folder, sinks)
    layout = layout_of(subject, 6)
    assert len({len(fact.fact) for fact in layout.facts}) > 1
    for distance in DISTANCES:
        for row, fact in zip(layout.streams, layout.facts, strict=True):
            text = [*row[: layout.question_at(distance)], *fact.question]
            words = subject.tokenizer.decode(text)
            assert FACT.format(name=fact.name, number=fact.number) in words
            assert words.endswith(QUESTION.format(name=fact.name, number=fact.number))
            assert text[: len(sinks)] == sinks
            length = fact.answer[1] - fact.answer[0]
            begins = layout.question_at(distance) + fact.answer[0]
            number = text[begins : begins + length]
            assert subject.tokenizer.decode(number).strip() == str(fact.number)
            places = [n for n in range(len(text)) if text[n : n + length] == number]
            assert places == [begins - 1 - distance, begins]


def test_nll_of_numbers_that_were_said_and_not(tokenizer_folder: Path) -> None:
    subject = subject_of(tokenizer_folder, [7])
    layout = layout_of(subject, 2)
    for name, distance in (("1+90", 100), ("dense", 70)):
        spec = CacheSpec.parse(name)
        found = asked(subject, spec, layout, rule="cache", chunk=33, advance=lambda amount: None)
        assert list(found) == DISTANCES
        for row, fact, scores in zip(layout.streams, layout.facts, found[distance], strict=True):
            ends = ((fact.question, fact.answer), (fact.other, fact.other_answer))
            for (question, (start, end)), scored in zip(ends, scores, strict=True):
                before = layout.question_at(distance)
                nll = reference_nll(subject.model, torch.tensor([*row[:before], *question]), spec)
                expected = float(nll[before + start - 1 : before + end - 1].sum())
                assert scored.nll == pytest.approx(expected, abs=2e-3)
    numbers = [fact.number for fact in layout.facts]
    told = [int(subject.tokenizer.decode(fact.other[slice(*fact.other_answer)])) for fact in layout.facts]
    assert told[:-1] == numbers[1:] and told[-1] not in numbers


@pytest.mark.parametrize("sinks", [0, 2])
def test_what_has_left_the_cache_cannot_be_seen(tokenizer_folder: Path, sinks: int) -> None:
    """In one layer nothing is handed on, so the first digit changes the answer if and only if it is in the cache."""
    subject = subject_of(tokenizer_folder, [], num_hidden_layers=1)
    layout = layout_of(subject)
    for y, distance, seen in ((81, 81, True), (80, 81, False), (100, 100, True), (99, 100, False)):
        logits = []
        for change in (0, 1):
            streams = Streams.open(subject, CacheSpec(sinks, y), 400)
            rows = torch.tensor(layout.streams)[:, : layout.question_at(distance)]
            for row, (before, fact) in enumerate(zip(layout.preambles, layout.facts, strict=True)):
                rows[row, before + fact.said] += change
            streams.feed(rows[:1])
            logits.append(streams.last(layout.facts[0].question[: layout.facts[0].answer[0]]))
        assert bool((logits[0] - logits[1]).abs().max() > 1e-4) is seen


def test_default_distances_go_across_each_cache_and_beyond() -> None:
    specs = [CacheSpec(4, 60), CacheSpec(4, 124), CacheSpec(0, None)]
    assert _default_distances(specs, 20) == [30, 31, 60, 61, 62, 120, 124, 125, 248]


def test_the_verb(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["recall", "--model.name", str(model_folder), "--text", str(prepared_folder), "--facts", "3", "--batch", "2",
           "--distances", "80 120", "--caches", "2+100 dense"]  # fmt: skip
    assert main([*run, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "recall.json").read_text())
    assert (found["schema"], found["kind"], found["facts"]) == (1, "recall", 3)
    rows = found["rows"]
    assert [(row["cache"], row["distance"], row["in_cache"]) for row in rows] == [
        ("2+100", 80, True), ("2+100", 120, False), ("dense", 80, True), ("dense", 120, True)]  # fmt: skip
    for row in rows:
        assert row["asked"] == 3 and row["accuracy"] == row["right"] / 3 and row["chance"] == found["chance"] > 0
        assert row["nll_interval"][0] <= row["nll"] <= row["nll_interval"][1]
        assert row["gain_interval"][0] <= row["gain"] <= row["gain_interval"][1]
    assert "120 tokens" in capsys.readouterr().out
    assert main([*run, "--out", str(tmp_path / "again"), "--batch", "1", "--chunk", "40"]) == 0
    again = json.loads((tmp_path / "again" / "recall.json").read_text())["rows"]
    assert [row["nll"] for row in again] == pytest.approx([row["nll"] for row in rows], abs=2e-3)


@pytest.mark.parametrize(("more", "words"), [
    (["--distances", "5"], "--distances 5: from the number"), (["--distances", "many"], "--distances 'many'"),
    (["--caches", "2+30"], "a fact with its question takes"),
    (["--caches", "dense"], "--distances: is missing; give some, since only a cache that evicts"),
    (["--caches", "2+100", "--facts", "900"], "fewer --facts"), (["--facts", "0"], "--facts"),
    (["--text", "./absent.txt"], "--text ./absent.txt"), (["--seed", "-1"], "--seed")])  # fmt: skip
def test_mistakes(
    more: list[str], words: str, model_folder: Path, prepared_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["recall", "--model.name", str(model_folder), "--text", str(prepared_folder), "--out",
                 str(tmp_path / "out")]  # fmt: skip
    assert main([*arguments, *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
