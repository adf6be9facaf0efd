"""The verb `stream-questions`: question answering in one long stream (arXiv 2309.17453, section 4.3 and Table 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sinktrain.base.errors import at_least
from sinktrain.base.folders import new_folder
from sinktrain.base.terminal import progress, say
from sinktrain.evaluation.recall.common import check_room, choose_caches, record, warn, write
from sinktrain.evaluation.recall.dialogue import Dialogue, make_dialogue
from sinktrain.evaluation.recall.feeding import Streams
from sinktrain.evaluation.recall.intervals import WILSON, accuracy, wilson
from sinktrain.evaluation.recall.questions import NORMALISATION, read_questions
from sinktrain.evaluation.recall.replies import Reply, alone, streamed
from sinktrain.evaluation.subject import ModelOptions, load_subject
from sinktrain.streaming import CacheSpec, PositionRule

FILE = "questions.json"
SIZES = (512,)
ALONE = "alone"
"""The name of the baseline: each question in a conversation of its own."""


def stream_questions(
    model: ModelOptions,
    questions: Path,
    out: Path,
    caches: str | None = None,
    system: str | None = None,
    instruction: str = "Answer in as few words as possible.",
    letter_instruction: str = "Answer with the letter of the right choice.",
    max_tokens: int = 24,
    rule: PositionRule = "cache",
    chunk: int = 256,
    overwrite: bool = False,
) -> Path:
    """Answers a file of questions one after another in one stream, and each alone, as the StreamingLLM paper did.

    Answers are greedy. After each the stream goes on with the right one, as it did in the paper. An answer in words
    is right when it is, normalised, one of the right ones; of choices the most probable letter is taken.

    Args:
        model: The model to evaluate; it needs a chat template that appends turn after turn.
        questions: A JSONL file: a line has `question` and `answer` (a text or a list of them), or `question`, `choices`
            and `answer` (a letter, or a number from 0).
        out: The result folder to write.
        caches: The caches to compare, x+y each (x sinks and the y most recent tokens), or `dense` for no eviction. By
            default a window of 512, the model's sinks (4 for a model without) in 512 positions, and dense.
        system: What the model is told before the first question; by default what its chat template says.
        instruction: What follows each question that is to be answered in words.
        letter_instruction: What follows each question with choices.
        max_tokens: How many tokens an answer in words may have.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        chunk: How many tokens to run at once; the result is the same for all.
        overwrite: Replace an existing result folder.

    Returns:
        The result folder.
    """
    at_least("--max_tokens", max_tokens, 1)
    at_least("--chunk", chunk, 1)
    asked = read_questions(questions)
    with new_folder(out, "--out", overwrite=overwrite, reads=[model.name, questions]) as draft:
        subject = load_subject(model)
        dialogue = make_dialogue(subject, asked, system, instruction, letter_instruction)
        specs = choose_caches(subject, caches, SIZES, window=SIZES[0])
        _check_room(specs, dialogue, max_tokens)
        warn(subject, specs, dialogue.tokens)
        replies: dict[str, list[Reply]] = {}
        rows: list[dict[str, Any]] = []
        with progress("questions", len(asked) * (len(specs) + 1)) as advance:
            for spec in (None, *specs):
                name = ALONE if spec is None else str(spec)
                if spec is None:
                    replies[name] = alone(subject, dialogue, max_tokens, chunk, advance)
                else:
                    streams = Streams.open(subject, spec, dialogue.tokens + max_tokens, rule=rule, chunk=chunk)
                    replies[name] = streamed(streams, dialogue, max_tokens, advance)
                size = spec.size if spec is not None else None
                evicted = 0 if size is None else max(0, dialogue.tokens - size)
                rows.append({**_row(name, replies[name], replies[ALONE], dialogue), "evicted": evicted})
                say(_words(rows[-1]))
        fields = {
            "questions": str(questions), "tokens": dialogue.tokens, "system": system, "instruction": instruction,
            "letter_instruction": letter_instruction, "max_tokens": max_tokens, "rule": rule,
            "chance": _chance(dialogue),
            "normalisation": NORMALISATION, "interval_method": WILSON, "rows": rows,
            "answers": _answers(dialogue, replies),
        }  # fmt: skip
        write(draft, FILE, record("questions", subject, fields))
    say(f"results: {out}")
    return out


def _check_room(specs: list[CacheSpec], dialogue: Dialogue, most: int) -> None:
    """Refuses a cache that cannot hold the longest question with its answer."""
    needed, turn = max(
        ((len(turn.following) + (1 if turn.letters else most), turn) for turn in dialogue.turns),
        key=lambda each: each[0],
    )
    check_room(specs, needed, f"the question on line {turn.question.line} with its answer")


def _row(name: str, replies: list[Reply], baseline: list[Reply], dialogue: Dialogue) -> dict[str, Any]:
    """The figures of one cache."""
    right = sum(reply.right for reply in replies)
    letters = [reply.right for reply, turn in zip(replies, dialogue.turns, strict=True) if turn.letters]
    words = [reply for reply, turn in zip(replies, dialogue.turns, strict=True) if not turn.letters]
    return {
        "cache": name,
        **accuracy(right, len(replies), wilson(right, len(replies))),
        "choices": {"asked": len(letters), "right": sum(letters)},
        "words": {
            "asked": len(words),
            "right": sum(reply.right for reply in words),
            "holds_answer": sum(reply.holds for reply in words),
        },
        "same_as_alone": sum(one.text == other.text for one, other in zip(replies, baseline, strict=True)),
    }


def _chance(dialogue: Dialogue) -> float | None:
    """The share of right letters that guessing gets; None without choices."""
    choices = [len(turn.letters) for turn in dialogue.turns if turn.letters]
    return sum(1 / each for each in choices) / len(choices) if choices else None


def _answers(dialogue: Dialogue, replies: dict[str, list[Reply]]) -> list[dict[str, Any]]:
    """Each question with what was answered under each cache."""
    return [
        {
            "line": turn.question.line,
            "question": turn.question.text,
            "answer": list(turn.question.answers),
            "replies": {name: found[number].text for name, found in replies.items()},
        }
        for number, turn in enumerate(dialogue.turns)
    ]


def _words(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    choices, words = row["choices"], row["words"]
    parts = []
    if choices["asked"]:
        parts.append(f"choices {choices['right']} of {choices['asked']}")
    if words["asked"]:
        parts.append(f"words {words['right']} of {words['asked']} (the answer is in {words['holds_answer']})")
    return (
        f"{row['cache']:>10}: {row['right']:>4} of {row['asked']} right, {row['accuracy']:.0%} "
        f"({low:.0%} to {high:.0%}); {', '.join(parts)}; as alone {row['same_as_alone']}; "
        f"{row['evicted']} tokens evicted"
    )
