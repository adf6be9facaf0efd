"""StreamEval: its text says what the paper describes, and an answer is right when decoding it would be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from transformers import AutoTokenizer

import sinktrain
from sinktrain.cli import main
from sinktrain.evaluation.recall.common import Tokens, beginning
from sinktrain.evaluation.recall.feeding import Answer, Streams, padded, score
from sinktrain.evaluation.recall.intervals import clustered, of_mean, wilson
from sinktrain.evaluation.recall.lines import PREFACE, make_sample
from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.streaming import CacheSpec, reference_nll

SIZE = 200
"""Ids below this one are tokens of the tiny tokenizer."""


@pytest.fixture(scope="module")
def subject(tokenizer_folder: Path) -> Subject:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return Subject(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, [], ModelOptions("tiny"), None)


@pytest.mark.parametrize(("distance", "every"), [(0, 1), (1, 10), (20, 10), (7, 3)])
def test_the_text_asks_for_the_line_so_many_lines_back(subject: Subject, distance: int, every: int) -> None:
    sample = make_sample(subject, 3, 1, distance=distance, queries=4, every=every)
    text = subject.tokenizer.decode(sample.ids)
    assert text.startswith(PREFACE)
    said, asked = {}, []
    for line in text.removeprefix(PREFACE).splitlines():
        words = re.fullmatch(r"(Query: )?The REGISTER_CONTENT in line (\d+) is <(\d+)>", line)
        assert words is not None
        if words[1]:
            asked.append((int(words[2]), int(words[3]), max(said)))
        else:
            assert int(words[2]) == len(said)
            said[int(words[2])] = int(words[3])
    assert len(asked) == 4 and len({line for line, _, _ in asked}) == 4
    assert all(said[line] == number and now - line == distance and now % every == 0 for line, number, now in asked)
    assert max(said) == asked[-1][2]  # nothing after the last query but its answer
    for query, (line, number, _) in zip(sample.queries, asked, strict=True):
        assert subject.tokenizer.decode(sample.ids[query.start : query.end]).strip() == f"<{number}>"
        length = query.end - query.start
        assert sample.ids[query.fact : query.fact + length] == sample.ids[query.start : query.end]
        assert subject.tokenizer.decode(sample.ids[: query.fact]).rstrip().endswith(f"in line {line} is")
        assert query.distance == query.start - 1 - query.fact


def test_lines_that_are_called_by_words(subject: Subject) -> None:
    for queries in (3, 40):
        sample = make_sample(subject, 0, 0, distance=20, queries=queries, every=10, words=True)
        text = subject.tokenizer.decode(sample.ids)
        said = dict(re.findall(r"^The REGISTER_CONTENT in line ([a-z ]+) is <(\d+)>$", text, flags=re.MULTILINE))
        asked = re.findall(r"^Query: The REGISTER_CONTENT in line ([a-z ]+) is <(\d+)>$", text, flags=re.MULTILINE)
        assert len(said) == 20 + 10 * (queries - 1) + 1 and len(asked) == queries
        assert [name for name, _ in asked] == list(said)[0 : 10 * queries : 10]
        assert all(said[name] == number for name, number in asked)


def test_the_lines_are_the_same_for_every_distance_and_others_for_every_sample(subject: Subject) -> None:
    texts = [
        subject.tokenizer.decode(make_sample(subject, seed, number, distance=distance, queries=2, every=10).ids)
        for seed, number, distance in [(0, 0, 20), (0, 0, 10), (0, 1, 20), (1, 0, 20)]
    ]
    lines = [re.findall(r"^The .*$", text, flags=re.MULTILINE) for text in texts]
    assert lines[1] == lines[0][: len(lines[1])] and lines[2][:9] != lines[0][:9] != lines[3][:9]


@pytest.mark.parametrize("cache", ["2+10", "0+12", "dense"])
def test_an_answer_is_right_when_it_is_what_greedy_decoding_writes(subject: Subject, cache: str) -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, SIZE, (3, 36), generator=generator)
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with sinktrain.stream(subject.model, cache):
        tokens[:, 21:27] = subject.model.generate(tokens[:, :21], max_new_tokens=6, **greedy)[:, 21:]
        tokens[2, 24] = (tokens[2, 24] + 1) % SIZE  # wrong in the midst of an answer, and right again after it
        tokens[2:, 25:27] = subject.model.generate(tokens[2:, :25], max_new_tokens=2, **greedy)[:, 25:]
    for chunk in (512, 4):
        streams = Streams.open(subject, CacheSpec.parse(cache), 36, chunk=chunk)
        places = [(0, 27), (1, 27), (2, 27), (2, 25), (2, 24)]
        found = score(streams, tokens, [Answer(row, 21, end) for row, end in places])
        assert [each.right for each in found] == [True, True, False, False, True]
        for row in range(3):
            expected = reference_nll(subject.model, tokens[row], CacheSpec.parse(cache))[20:26].sum()
            assert found[row].nll == pytest.approx(float(expected), abs=1e-3)


def test_a_sink_is_never_an_answer(subject: Subject) -> None:
    best = int(subject.model(torch.tensor([[7, 8, 9]])).logits[0, -1].argmax())
    second = subject.model(torch.tensor([[7, 8, 9]])).logits[0, -1].topk(2).indices.tolist()[1]
    with_sink = Subject(subject.model, subject.tokenizer, [best], subject.options, None)
    tokens = torch.tensor([[7, 8, 9, second]])
    for who, right in ((subject, False), (with_sink, True)):
        (found,) = score(Streams.open(who, CacheSpec.parse("dense"), 4), tokens, [Answer(0, 3, 4)])
        assert found.right is right


def test_a_branch_leaves_the_stream_as_it_was(subject: Subject) -> None:
    tokens = torch.randint(0, SIZE, (2, 60), generator=torch.Generator().manual_seed(2))
    whole = Streams.open(subject, CacheSpec.parse("2+10"), 60)
    expected = score(whole, tokens, [Answer(0, 50, 60), Answer(1, 50, 60)])
    streams = Streams.open(subject, CacheSpec.parse("2+10"), 60)
    streams.feed(tokens[:, :40])
    question = torch.randint(0, SIZE, (4, 12), generator=torch.Generator().manual_seed(3))
    branched = score(streams.branch(2), question, [Answer(row, 3, 12) for row in range(4)])
    for row in range(4):  # each stream twice, in order
        text = torch.cat((tokens[row // 2, :40], question[row]))
        by_hand = reference_nll(subject.model, text, CacheSpec.parse("2+10"))[42:].sum()
        assert branched[row].nll == pytest.approx(float(by_hand), abs=1e-3)
    found = score(streams, tokens[:, 40:], [Answer(0, 10, 20), Answer(1, 10, 20)])
    assert [each.nll for each in found] == pytest.approx([each.nll for each in expected], abs=1e-4)


def test_rows_that_end_early_do_not_disturb(subject: Subject) -> None:
    rows = [list(range(40)), list(range(50, 70))]
    found = score(
        Streams.open(subject, CacheSpec.parse("1+9"), 40), padded(rows), [Answer(0, 30, 40), Answer(1, 15, 20)]
    )
    for row, first, value in ((rows[0], 29, found[0].nll), (rows[1], 14, found[1].nll)):
        by_hand = reference_nll(subject.model, torch.tensor(row), CacheSpec.parse("1+9"))[first:].sum()
        assert value == pytest.approx(float(by_hand), abs=1e-3)


def test_which_tokens_have_which_characters(subject: Subject) -> None:
    text = "the cat <8806> sat"
    tokens = Tokens(subject, text)
    start, end = tokens.span(text.index("<"), text.index(">") + 1)
    assert subject.tokenizer.decode(tokens.ids[start:end]).strip() == "<8806>"
    assert beginning(subject) == []
    with_sinks = Subject(subject.model, subject.tokenizer, [5, 6], subject.options, None)
    assert beginning(with_sinks) == [5, 6]


def test_intervals_against_published_ones() -> None:
    # Newcombe 1998, Table I, method 3 (Wilson without continuity correction)
    for right, asked, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(right, asked) == pytest.approx([low, high], abs=5e-5)
    assert wilson(29, 29)[1] == 1.0
    alike, apart = clustered([5] * 20, 10), clustered([0, 10] * 10, 10)
    assert alike == pytest.approx(wilson(100, 200))  # never narrower than of independent questions
    assert apart[1] - apart[0] > 2.5 * (alike[1] - alike[0])
    assert clustered([7], 10) == [0, 1] and clustered([0, 10], 10) == [0, 1]  # one sample tells nothing of the others
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    half = 1.96 * values.std() / 20
    assert of_mean(values) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.02)
    few = np.random.default_rng(1).normal(size=(4000, 8))  # as few as a person may ask for
    held = np.mean([low < 0 < high for low, high in map(of_mean, few)])
    assert 0.94 < held < 0.96


@pytest.mark.parametrize(("a", "b"), [(2, 2), (5, 5), (8, 2)])
@pytest.mark.parametrize(("samples", "wide"), [(2, 0.95), (4, 0.75), (8, 0.45), (20, 0.27)])
def test_the_interval_over_samples_holds_the_truth_however_few(a: int, b: int, samples: int, wide: float) -> None:
    random = np.random.default_rng([a, b, samples])
    right = random.binomial(10, random.beta(a, b, (1500, samples)))
    found = np.array([clustered(each, 10) for each in right.tolist()])
    assert np.mean((found[:, 0] <= a / (a + b)) & (a / (a + b) <= found[:, 1])) > 0.93
    assert np.mean(found[:, 1] - found[:, 0]) < wide


def test_the_verb(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["stream-eval", "--model.name", str(model_folder), "--line_distances", "1 6", "--samples", "3", "--queries",
           "2", "--every", "3", "--batch", "2", "--caches", "4+140, dense"]  # fmt: skip
    assert main([*run, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "streameval.json").read_text())
    assert (found["schema"], found["kind"]) == (1, "streameval") and "Student's t over samples" in found[
        "interval_method"
    ]
    rows = found["rows"]
    assert [(row["cache"], row["line_distance"]) for row in rows] == [
        ("4+140", 1), ("4+140", 6), ("dense", 1), ("dense", 6)]  # fmt: skip
    assert [row["in_cache"] for row in rows] == [6, 0, 6, 6] and all(row["asked"] == 6 for row in rows)
    assert rows[0]["interval"][0] <= rows[0]["accuracy"] <= rows[0]["interval"][1]
    assert rows[1]["token_distance"] > 140 > rows[0]["token_distance"] and rows[1]["nll"] > 0
    assert "6 lines" in capsys.readouterr().out
    assert main([*run, "--out", str(tmp_path / "again"), "--batch", "3", "--chunk", "50"]) == 0
    again = json.loads((tmp_path / "again" / "streameval.json").read_text())["rows"]
    assert [row["right"] for row in again] == [row["right"] for row in rows]
    assert [row["nll"] for row in again] == pytest.approx([row["nll"] for row in rows], abs=1e-3)


@pytest.mark.parametrize(("more", "words"), [
    (["--line_distances", "x"], "--line_distances 'x'"), (["--line_distances", ""], "--line_distances"),
    (["--line_distances", "-1"], "--line_distances -1"), (["--samples", "0"], "--samples"),
    (["--queries", "0"], "--queries"), (["--every", "0"], "--every"), (["--caches", "4+20"], "a line with its query"),
    (["--caches", "4+200 4+200"], "each cache once"), (["--model.name", "./nowhere"], "model.name")])  # fmt: skip
def test_mistakes(
    more: list[str], words: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream-eval", "--model.name", str(model_folder), "--out", str(tmp_path / "out"), *more]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
