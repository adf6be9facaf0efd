"""Questions in one long stream: what is fed, what counts as right, and the same question alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from transformers import AutoTokenizer

from sinktrain.base.errors import UserError
from sinktrain.cli import main
from sinktrain.evaluation.recall import answering
from sinktrain.evaluation.recall import replies as answers
from sinktrain.evaluation.recall.dialogue import Dialogue, make_dialogue
from sinktrain.evaluation.recall.feeding import Streams
from sinktrain.evaluation.recall.questions import Question, normalised, read_questions
from sinktrain.evaluation.subject import ModelOptions, Subject
from sinktrain.streaming import CacheSpec

QUESTIONS = [
    Question(1, "where is the cat", ("on a mat",)),
    Question(2, "who ran", ("B",), ("the cat", "the dog", "we")),
    Question(3, "who saw it", ("we all", "all")),
    Question(4, "how they went", ("A",), ("home", "again")),
]
HINT, LETTERS = "be brief", "say the letter"


@pytest.fixture(scope="module")
def chat_folder(chatty: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    folder = tmp_path_factory.mktemp("chat")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def subject(chatty: str) -> Subject:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    return Subject(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, [], ModelOptions("tiny"), None)


@pytest.fixture(scope="module")
def dialogue(subject: Subject) -> Dialogue:
    return make_dialogue(subject, QUESTIONS, "you are a dog", HINT, LETTERS)


def messages(count: int) -> list[dict[str, str]]:
    """The conversation up to question `count`, as it should be."""
    asked = [
        "where is the cat\nbe brief", "who ran\nA. the cat\nB. the dog\nC. we\nsay the letter",
        "who saw it\nbe brief", "how they went\nA. home\nB. again\nsay the letter",
    ]  # fmt: skip
    told = ["on a mat", "B", "we all", "A"]
    turns = [{"role": "system", "content": "you are a dog"}]
    for question, answer in zip(asked[:count], told, strict=False):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns[:-1]


def rendered(subject: Subject, turns: list[dict[str, str]]) -> list[int]:
    text = subject.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = subject.tokenizer.encode(text, add_special_tokens=False)
    return ids


def test_what_is_fed_is_the_conversation_with_the_right_answers(
    subject: Subject, dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    last = Streams.last

    def record(self: Streams, tokens: list[int]) -> torch.Tensor:
        if self is streams:  # not what a branch of it is fed
            fed.extend(tokens)
        return last(self, tokens)

    monkeypatch.setattr(Streams, "last", record)
    streams = Streams.open(subject, CacheSpec.parse("dense"), 600)
    answers.streamed(streams, dialogue, 5, lambda amount: None)
    assert fed == rendered(subject, messages(4)) and dialogue.tokens == len(fed)


def test_replies_are_those_of_transformers(subject: Subject, dialogue: Dialogue) -> None:
    streams = Streams.open(subject, CacheSpec.parse("dense"), 600)
    streamed = answers.streamed(streams, dialogue, 5, lambda amount: None)
    alone = answers.alone(subject, dialogue, 5, 64, lambda amount: None)
    ends = sorted(dialogue.ends)
    for number, question in enumerate(QUESTIONS):
        own = [messages(1)[0], *messages(number + 1)[-1:]]
        for found, turns in ((streamed[number], messages(number + 1)), (alone[number], own)):
            ids = torch.tensor([rendered(subject, turns)])
            if question.choices:
                logits = subject.model(ids).logits[0, -1]
                letters = [subject.tokenizer.encode(letter)[0] for letter in "ABC"[: len(question.choices)]]
                assert found.text == "ABC"[int(logits[letters].argmax())]
                assert found.right == (found.text == question.answers[0])
            else:
                out = subject.model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=ends, pad_token_id=0)
                words = subject.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
                assert found.text == words and words and not found.right


def test_an_answer_that_the_model_gives_is_right(subject: Subject, dialogue: Dialogue) -> None:
    alone = answers.alone(subject, dialogue, 5, 64, lambda amount: None)
    known = [
        Question(each.line, each.text, (reply.text,), each.choices)
        for each, reply in zip(QUESTIONS, alone, strict=True)
    ]
    again = make_dialogue(subject, known, "you are a dog", HINT, LETTERS)
    replies = answers.alone(subject, again, 5, 64, lambda amount: None)
    assert all(reply.right and reply.holds for reply in replies)
    row = answering._row("alone", replies, replies, again)
    assert (row["right"], row["choices"]["right"], row["words"]["right"], row["same_as_alone"]) == (4, 2, 2, 4)
    assert answering._chance(again) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_normalisation() -> None:
    assert normalised(" The CAT,  sat (on) a mat! ") == "cat sat on mat"
    assert normalised("H₂O") == "h2o" and normalised("“Strasse”") == normalised("STRASSE.")
    question = Question(1, "?", ("Paris", "city of light"))
    assert question.is_right("paris.") and question.is_right("The City of Light") and not question.is_right("In Paris")
    assert question.is_held_by("It is Paris, of course") and not question.is_held_by("comparison")


def test_reading(tmp_path: Path) -> None:
    lines = [
        {"question": "a", "answer": "x"}, {"question": "b", "answer": ["x", "y"]},
        {"question": "c", "choices": ["x", "y"], "answer": 1}, {"question": "d", "choices": ["x", "y"], "answer": "a"},
    ]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    found = read_questions(tmp_path / "q.jsonl")
    assert [(each.line, each.answers) for each in found] == [(1, ("x",)), (3, ("x", "y")), (5, ("B",)), (7, ("A",))]


@pytest.mark.parametrize(("line", "words"), [
    ("{", "is not JSON"), ("[1]", 'no text "question"'), ('{"answer": "x"}', 'no text "question"'),
    ('{"question": "a"}', 'no "answer"'), ('{"question": "a", "answer": "!"}', 'no "answer"'),
    ('{"question": "a", "answer": []}', 'no "answer"'),
    ('{"question": "a", "choices": ["x"], "answer": 0}', '"choices"'),
    ('{"question": "a", "choices": ["x", "y"], "answer": 2}', "A to B"),
    ('{"question": "a", "choices": ["x", "y"], "answer": "C"}', "A to B"),
    ('{"question": "a", "choices": ["x", "y"], "answer": true}', "A to B")])  # fmt: skip
def test_a_line_that_is_no_question_is_named(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"q\.jsonl: line 2 ") as error:
        read_questions(tmp_path / "q.jsonl")
    assert words in str(error.value) and str(error.value).endswith(".")


def written(folder: Path) -> Path:
    path = folder / "questions.jsonl"
    entries = [
        {"question": each.text, "answer": each.answers[0], **({"choices": each.choices} if each.choices else {})}
        for each in QUESTIONS * 3
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_verb(chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["stream-questions", str(written(tmp_path)), str(tmp_path / "out"), "--model.name", str(chat_folder)]
    assert main([*run, "--caches", "4+200 0+200 dense", "--max_tokens", "6"]) == 0
    found = json.loads((tmp_path / "out" / "questions.json").read_text())
    assert (found["schema"], found["kind"], found["chance"]) == (1, "questions", pytest.approx(5 / 12))
    assert [row["cache"] for row in found["rows"]] == ["alone", "4+200", "0+200", "dense"]
    for row in found["rows"]:
        assert row["asked"] == 12 and row["choices"]["asked"] == row["words"]["asked"] == 6
        assert row["right"] == row["choices"]["right"] + row["words"]["right"]
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert found["rows"][0]["same_as_alone"] == 12 and found["rows"][1]["evicted"] == found["tokens"] - 204
    assert [len(found["answers"]), set(found["answers"][0]["replies"])] == [12, {"alone", "4+200", "0+200", "dense"}]
    assert "tokens evicted" in capsys.readouterr().out


def test_mistakes(chat_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, out = written(tmp_path), tmp_path / "out"
    for model, more, words in (
        (model_folder, [], "no chat template; use a model that was tuned to chat.\n"),
        (chat_folder, ["--caches", "4+20"], "the question on line "),
        (chat_folder, ["--max_tokens", "0"], "--max_tokens"), (chat_folder, ["--caches", "x"], "--caches"),
        (chat_folder, ["--questions", "./absent"], "absent: cannot be read"),
    ):  # fmt: skip
        arguments = ["--model.name", str(model), "--questions", str(questions), "--out", str(out), *more]
        assert main(["stream-questions", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1 and not out.exists()


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """JSON may hold what Unicode calls the end of a line; a mark of its encoding may stand in front."""
    path = tmp_path / "questions.jsonl"
    lines = [
        json.dumps({"question": f"one{end}two?", "answer": "three"}, ensure_ascii=False) for end in "\u2028\u0085\f"
    ]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert len(read_questions(path)) == 3
