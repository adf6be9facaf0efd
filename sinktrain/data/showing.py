"""Training samples to look at, before anything is trained on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinktrain.base.secrets import redact
from sinktrain.base.terminal import say
from sinktrain.data.mixture import Mixture
from sinktrain.data.packing import DEFAULT_LENGTH, IGNORED, Layout
from sinktrain.data.prepared import PreparedText
from sinktrain.sinks.config import SinkConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["sink", "context", "trained", "padding"]
STYLES: dict[Kind, str] = {"sink": "bold magenta", "context": "dim", "trained": "bold green", "padding": "dim italic"}
OPEN, CLOSE = "⟦", "⟧"


class Part(NamedTuple):
    """Some text of a sample, and what it is to the loss."""

    text: str
    kind: Kind


def show_samples(folder: Path, count: int) -> None:
    """Prints the first samples that `sinktrain fit` would train on, with a sink, `data.seed` 0 and its usual length.

    Conversations are packed as they must be, by `document`, and other text as is usual, by `chunk`. On a terminal what
    is trained on is green, elsewhere it stands between brackets.

    Args:
        folder: a prepared one.
        count: how many samples; fewer if there are fewer.
    """
    from sinktrain.base.models import load_tokenizer

    text = PreparedText(folder, "--out")
    tokenizer = load_tokenizer(text.tokenizer, option="--tokenizer")
    sink = max(tokenizer.get_vocab().values()) + 1  # its number does not matter, as long as nothing else has it
    batch = first_batch(text, count, sink)
    in_colour = sys.stdout.isatty()
    marks = "green" if in_colour else f"between {OPEN} and {CLOSE}"
    trained = int((batch["labels"] != IGNORED).sum())
    samples, length = batch["labels"].shape
    say(
        f"The first {samples} training samples as `sinktrain fit` makes them with a sink and --data.sequence_length "
        f"{length}; the {trained:,} tokens that are trained on are {marks}."
    )
    for number in range(samples):
        say(f"--- sample {number + 1} of {samples}")
        row = {name: column[number] for name, column in batch.items() if column.ndim == 2}
        parts = list(parts_of(row, tokenizer, sink))
        print_in_colour(parts) if in_colour else say(in_brackets(parts))


def first_batch(text: PreparedText, count: int, sink: int) -> dict[str, NDArray[np.int64]]:
    """The first `count` training samples as one batch, made by what makes those of a training run."""
    from sinktrain.data.samples import Batches, OrderedBatches, Share

    length = min(DEFAULT_LENGTH, len(text.tokens("train")) + 1)  # a text shorter than a sample is one
    rows = Layout("document" if text.is_chat else "chunk", length, (sink,), 1).rows(text, "train")
    order = OrderedBatches(Mixture([len(rows)]), Share(min(count, len(rows))))
    return {name: values.numpy() for name, values in Batches([rows])[next(iter(order))].items()}


def parts_of(row: dict[str, NDArray[np.int64]], tokenizer: PreTrainedTokenizerBase, sink: int) -> Iterator[Part]:
    """A sample (T,) as text, part by part; each piece of it begins with the sink, padding with nothing.

    Args:
        row: `input_ids`, `labels` and, with packing `document`, `position_ids`.
        tokenizer: spells the tokens, the special ones too.
        sink: its number.
    """
    ids, trained = row["input_ids"], row["labels"] != IGNORED
    positions = row.get("position_ids", np.arange(len(ids)))
    for piece in np.split(np.arange(len(ids)), np.flatnonzero(positions == 0)[1:]):
        if ids[piece[0]] != sink:
            yield Part(f"({len(piece)} positions of padding)", "padding")
            continue
        yield Part(SinkConfig().tokens[0], "sink")
        inside = piece[1:]
        said = ""
        for run in np.split(inside, np.flatnonzero(np.diff(trained[inside])) + 1):
            if not len(run):
                continue
            # A tokenizer may drop the space before a text's first word, so each run is spelled with what precedes it.
            told = ids[inside[0] : run[-1] + 1].tolist()
            spelled = str(tokenizer.decode(told, clean_up_tokenization_spaces=False))
            yield Part(_visible(spelled[len(said) :]), "trained" if trained[run[0]] else "context")
            said = spelled
        if not said.endswith("\n"):
            yield Part("\n", "context")


def in_brackets(parts: list[Part]) -> str:
    """Plain text, in which what is trained on stands between brackets."""
    return redact("".join(OPEN + part.text + CLOSE if part.kind == "trained" else part.text for part in parts))


def print_in_colour(parts: list[Part]) -> None:
    """Prints to a terminal."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(*((redact(part.text), STYLES[part.kind]) for part in parts))
    Console(highlight=False, soft_wrap=True).print(text)


def _visible(text: str) -> str:
    """Text from anywhere, in which nothing can give a terminal orders."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
