"""The verb `generate`: a prompt, and then on and on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from sinktrain.base.errors import UserError, at_least
from sinktrain.evaluation.subject import ModelOptions, Subject, load_subject
from sinktrain.evaluation.turns import end_ids
from sinktrain.generation.detokenizer import Detokenizer
from sinktrain.generation.ending import Signalled, note, reader_may_leave, signals_noted, write
from sinktrain.generation.endless import Stream, cautions, choose_cache, open_stream
from sinktrain.generation.sampling import Sampler, Sampling
from sinktrain.generation.statistics import statistics
from sinktrain.streaming import PositionRule

Endless = Literal["inf"]


def generate(
    model: ModelOptions,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    cache: str | None = None,
    rule: PositionRule = "cache",
    max_tokens: int | Endless = "inf",
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    stop_at_end: bool = False,
    special: bool = False,
) -> int:
    """Goes on with a prompt for as long as you like, in a memory that does not grow.

    The text goes to standard output as it comes, and nothing else does. Ctrl-C ends it; statistics then go to standard
    error. Sink tokens are put in front, and never generated.

    Args:
        model: The model to run.
        prompt: The text to go on with; `-` reads it from standard input, which is also the default when that is not a
            terminal. An empty prompt lets the model begin by itself.
        prompt_file: A file with the text to go on with.
        cache: The cache, x+y (x sinks and the y most recent tokens), or `dense` for no eviction. By default, x is the
            number of sinks that the model was trained with, or 4 for a model without, and y is what fills 1024, or
            the trained length if that is shorter.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        max_tokens: How many tokens to generate; `inf` for no end.
        temperature: What the logits are divided by; 0 takes the most probable token each time.
        top_k: Draw from that many of the most probable tokens only; 0 for all.
        top_p: Draw from the most probable tokens that make up this probability together; 1 for all.
        seed: Of the random numbers.
        stop_at_end: End after a token that ends a text; otherwise the model goes on with the next text.
        special: Also write special tokens, such as `<|endoftext|>`.

    Returns:
        The exit status: 0, 130 for Ctrl-C when a number of tokens was asked for, 143 for SIGTERM.
    """
    if max_tokens != "inf":
        at_least("--max_tokens", max_tokens, 0)
    sampling = Sampling(temperature, top_k, top_p, seed)
    text = read_prompt(prompt, prompt_file)
    subject = load_subject(model)
    ids = prompt_ids(subject, text)
    spec = choose_cache(subject, cache)
    for caution in cautions(subject, spec):
        note(f"warning: {caution}")
    stream = open_stream(subject, spec, rule, Sampler(subject, sampling))
    ends = end_ids(subject) if stop_at_end else ()
    with signals_noted() as signalled:
        try:
            with reader_may_leave():
                write_continuation(stream, ids, ends, special, max_tokens, signalled)
        finally:
            if sys.stdout.isatty():
                note("")
            note(statistics(stream))
    if signalled.number == signal.SIGINT:
        return 0 if max_tokens == "inf" else 128 + signal.SIGINT
    return 0 if signalled.number is None else 128 + signalled.number


def write_continuation(
    stream: Stream, ids: list[int], ends: Collection[int], special: bool, most: int | Endless, signalled: Signalled
) -> None:
    """Writes what follows a prompt to standard output.

    Args:
        stream: that has seen nothing yet.
        ids: the prompt.
        ends: after one of these tokens it is over.
        special: also write special tokens.
        most: it is over after that many tokens.
        signalled: it is over when this says so.
    """
    detokenizer = Detokenizer(stream.subject.tokenizer, ids, special)
    while not signalled() and (most == "inf" or stream.drawn < most):
        token = stream.next(ids, signalled)
        if token is None:
            break
        write(detokenizer.step(token))
        if token in ends:
            break
        ids = [token]
    write(detokenizer.finish())


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The text that the options name, or standard input when they name none and it is not a terminal.

    Raises:
        UserError: both are given, there is no such file, or it is not UTF-8.
    """
    if prompt is not None and prompt_file is not None:
        raise UserError("--prompt_file: there is a --prompt too; give one of them.")
    if prompt_file is None and prompt not in (None, "-"):
        return str(prompt)
    from_input = prompt_file is None or str(prompt_file) == "-"
    if from_input and prompt is None and prompt_file is None and sys.stdin.isatty():
        return ""
    option = "--prompt -" if from_input else f"--prompt_file {prompt_file}"
    try:
        data = sys.stdin.buffer.read() if prompt_file is None or from_input else prompt_file.read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{option}: cannot be read ({error.strerror}); name a file with text.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{option}: is not UTF-8; convert it first.") from error


def prompt_ids(subject: Subject, text: str) -> list[int]:
    """The tokens of a prompt as in training: its sinks in front, once, and none further on even if the text names one.

    Raises:
        UserError: there is not a single token to start from.
    """
    sinks = subject.sink_ids
    encoded: list[int] = subject.tokenizer(text, verbose=False).input_ids
    ids = [*sinks, *(token for token in encoded if token not in sinks)]
    if not ids and subject.tokenizer.bos_token_id is not None:
        ids = [int(subject.tokenizer.bos_token_id)]
    if not ids:
        raise UserError("--prompt: is empty, and the model has no sink or BOS token to begin with; give a text.")
    return ids
