"""The evaluation harness with sinks: every window behind exactly these, none cut off; figures as computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sinktrain.cli import main
from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.evaluation.tasks import harness_model
from sinktrain.sinks import SinkConfig
from sinktrain.sinks.embedding import grow_embedding
from sinktrain.sinks.tokenizer import add_sink_tokens

pytest.importorskip("lm_eval")
LENGTH = 24
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "the", "sea"]


def subject(tokenizer_folder: Path, count: int) -> Subject:
    """A tiny random model with sinks."""
    from conftest import tiny_model

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sink = SinkConfig(count=count)
    ids = add_sink_tokens(tokenizer, sink)
    model = tiny_model("llama", torch.float32)
    grow_embedding(model, len(tokenizer), ids, sink, None, True)
    return Subject(model.eval(), tokenizer, ids, ModelOptions("x"), sink.to_dict())


class Seen:
    """Records what the model is given, without padding."""

    def __init__(self, harness: Any) -> None:
        self.rows: list[list[int]] = []
        forward = harness._model_call

        def call(inps: torch.Tensor, *more: Any, **named: Any) -> Any:
            self.rows += inps.tolist()
            return forward(inps, *more, **named)

        harness._model_call = call


def instance(*arguments: Any) -> Any:
    class Instance:
        args = arguments

    return Instance()


def log_probability(subject: Subject, context: list[int], continuation: list[int]) -> float:
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        logits = subject.model(input_ids=ids[:, :-1], use_cache=False).logits[0].double().log_softmax(-1)
    return float(logits[len(context) - 1 :].gather(-1, torch.tensor(continuation)[:, None]).sum())


@pytest.mark.parametrize("count", [1, 3])
def test_continuations(tokenizer_folder: Path, count: int) -> None:
    one = subject(tokenizer_folder, count)
    harness = harness_model(one, 2, LENGTH)
    seen = Seen(harness)
    contexts = ["", "the cat", " ".join(WORDS * 5), "<sink>" + ("<sink_1><sink_2>" if count == 3 else "") + "the dog"]
    if count == 3:
        contexts[3] = "".join(one.tokenizer.convert_ids_to_tokens(one.sink_ids)) + "the dog"  # a chat template's
    found = harness.loglikelihood([instance(context, " sat") for context in contexts], disable_tqdm=True)
    continuation = one.tokenizer.encode(" sat", add_special_tokens=False)
    for context, (value, _) in zip(contexts, found, strict=True):
        ids = [i for i in one.tokenizer.encode(context, add_special_tokens=False) if i not in one.sink_ids]
        room = LENGTH + 1 - count - len(continuation)
        expected = log_probability(one, one.sink_ids + ids[max(0, len(ids) - room) :], continuation)
        assert value == pytest.approx(expected, abs=1e-4)
    for row in seen.rows:
        assert row[:count] == one.sink_ids and len(row) <= LENGTH
        assert sum(index in one.sink_ids for index in row) == count
    assert max(map(len, seen.rows)) == LENGTH  # the long one was cut


@pytest.mark.parametrize("count", [1, 3])
def test_continuations_longer_than_a_window(tokenizer_folder: Path, count: int) -> None:
    """Each token is predicted once: of 22 text positions and more in parts, each behind the sinks."""
    one = subject(tokenizer_folder, count)
    harness = harness_model(one, 2, LENGTH)
    seen = Seen(harness)
    room = LENGTH - count
    text = one.tokenizer.encode(" ".join(WORDS * 9), add_special_tokens=False)
    before = text[:5]
    lengths = [*range(room - 1, LENGTH + 2), 2 * room, 60]
    requests = [(("", ""), before, text[5 : 5 + length]) for length in lengths]
    found = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    for (_, _, continuation), (value, greedy) in zip(requests, found, strict=True):
        ids, expected = before + continuation, 0.0
        size = len(continuation) if len(continuation) <= room + 1 else room
        for start in range(5, len(ids), size):
            part = ids[start : start + size]
            left = max(0, start - (room + 1 - len(part)))
            expected += log_probability(one, one.sink_ids + ids[left:start], part)
        assert value == pytest.approx(expected, abs=1e-3) and not greedy
    for row in seen.rows:
        assert row[:count] == one.sink_ids and len(row) <= LENGTH
        assert sum(index in one.sink_ids for index in row) == count


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("words", [3, 23, 60])
def test_rolling_windows(tokenizer_folder: Path, count: int, words: int) -> None:
    """Each token is predicted once, in windows of at most 24 positions, the sinks in front of each."""
    one = subject(tokenizer_folder, count)
    harness = harness_model(one, 2, LENGTH)
    seen = Seen(harness)
    text = " ".join((WORDS * 9)[:words])
    (found,) = harness.loglikelihood_rolling([instance(text)], disable_tqdm=True)
    ids, room = one.tokenizer.encode(text, add_special_tokens=False), LENGTH - count
    expected, done = log_probability(one, one.sink_ids, ids[:room]), min(room, len(ids))
    while done < len(ids):
        end = min(done + room, len(ids))
        expected += log_probability(one, one.sink_ids + ids[max(0, end - 1 - room) : done], ids[done:end])
        done = end
    assert found == pytest.approx(expected, abs=1e-3)
    for row in seen.rows:
        assert row[:count] == one.sink_ids and len(row) <= LENGTH
        assert sum(index in one.sink_ids for index in row) == count


def test_prompts_are_cut_behind_the_sinks(tokenizer_folder: Path) -> None:
    one = subject(tokenizer_folder, 2)
    harness = harness_model(one, 2, LENGTH)
    ids, mask = harness.tok_batch_encode(["the cat", " ".join(WORDS * 5)], left_truncate_len=10)
    assert ids.shape == mask.shape == (2, 12)
    for row, real in zip(ids.tolist(), mask.bool().tolist(), strict=True):
        kept = [index for index, is_text in zip(row, real, strict=True) if is_text]
        assert kept[:2] == one.sink_ids and not set(kept[2:]) & set(one.sink_ids)
    assert mask[1].all() and not mask[0, 0]


TASKS = {
    "which": {
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": [" mat", " sea"],
        "doc_to_target": 0, "metric_list": [{"metric": "acc"}],
    },
    "prose": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "more": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "mat",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 5}, "metric_list": [{"metric": "exact_match"}],
    },
    "too_much": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "mat",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 600}, "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def write_tasks(place: Path) -> Path:
    """Tasks made of a local file; the last wants more than the model's window."""
    folder = place / "tasks"
    folder.mkdir()
    (folder / "docs.jsonl").write_text(
        "".join(json.dumps({"text": "the cat sat on a " * n}) + "\n" for n in (1, 3, 90))
    )
    for name, fields in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
        task = {"task": f"local_{name}", "test_split": "test", **data, **fields}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


@pytest.mark.slow
def test_the_verb(
    model_folder: Path, prepared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [
        "fit", "--model.name", str(model_folder), "--data.path", str(prepared_folder), "--data.sequence_length", "32",
        "--trainer.max_steps", "1", "--trainer.logger", "false", "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(tmp_path), "--checkpoints.folder", str(tmp_path / "kept"),
        "--model.optimizer.warmup_steps", "0", "--base_quality.tokens", "0", "--trainer.limit_val_batches", "0",
    ]  # fmt: skip
    assert main(fit) == 0 and main(["export", str(tmp_path / "kept"), str(tmp_path / "model")]) == 0
    folder = write_tasks(tmp_path)
    evaluate = ["evaluate", "--model.name", str(tmp_path / "model"), "--tasks", "local_which,local_prose,local_more",
                "--task_folder", str(folder), "--out", str(tmp_path / "found")]  # fmt: skip
    assert main(evaluate) == 0
    assert "local_prose" in capsys.readouterr().out
    record = json.loads((tmp_path / "found" / "tasks.json").read_text())
    assert set(record["results"]) == {"local_which", "local_prose", "local_more"}
    assert record["results"]["local_prose"]["word_perplexity,none"] > 1 and record["model"]["sink"]["count"] == 1
    for arguments, said in (
        (["--tasks", "no_such_task", "--out", str(tmp_path / "a")], "--tasks no_such_task: is no task"),
        (["--out", str(tmp_path / "a")], "--text: is missing"),
        (["--tasks", "local_which", "--limit", "-1", "--out", str(tmp_path / "a")], "--limit -1: is below 1"),
        (["--tasks", "local_which", "--batch", "0", "--out", str(tmp_path / "a")], "--batch 0: is below 1"),
        (["--tasks", "local_which", "--text", "stdlib", "--out", str(tmp_path / "a")], "not both"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["evaluate", "--model.name", str(tmp_path / "model"), *arguments]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    more = ["--tasks", "local_too_much", "--task_folder", str(folder), "--out", str(tmp_path / "a")]
    assert main(["evaluate", "--model.name", str(tmp_path / "model"), *more]) == 2
    err = capsys.readouterr().err  # between the harness's bars
    assert "--tasks local_too_much: the harness cannot run this on the model (Invalid configuration: requested" in err
    assert err.count("sinktrain evaluate: ") == 1 and "Traceback" not in err
    assert not (tmp_path / "a").exists()
