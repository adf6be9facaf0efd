"""A grid at work: each piece is measured once, by one rank, and what came of it outlives a kill."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from sinktrain.base.models import fingerprint
from sinktrain.base.terminal import Clock, progress
from sinktrain.evaluation.attention import attention_to_first
from sinktrain.evaluation.grid import Asked, Row, recompute_some, recomputed_tokens, stream_text
from sinktrain.evaluation.pieces import ATTENTION, WINDOWS, Piece, Settings, pieces, too_few, warn
from sinktrain.evaluation.subject import Subject, load_subject
from sinktrain.evaluation.texts import Text, load_text, respell


class Workshop:
    """Measures pieces and keeps what came of them in a folder, which several ranks share.

    Args:
        settings: what is measured.
        folder: for the pieces; made anew by `begin`.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._first: Subject | None = None

    def begin(self, clear: Callable[[], None]) -> None:
        """Reads the texts, once for all models; on the first rank, before the others come.

        Args:
            clear: empties the folder; called once there is something to put into it.
        """
        self._first = load_subject(self.settings.models[0].options)
        read = (self._first.tokenizer, self.settings.tokens, self.settings.skip)
        texts = [load_text(name, *read) for name in self.settings.texts]
        clear()
        for number, text in enumerate(texts):
            self._keep_arrays(f"t{number}", tokens=text.tokens.numpy(), documents=text.document_of)
            spelled = {"spelled": text.spelled, "whole": text.whole}
            self._keep_json(f"t{number}", {"tokenizer": fingerprint(self._first.tokenizer), **spelled})

    def is_done(self, piece: Piece) -> bool:
        """Whether its result is there."""
        return any(self._path(f"{piece.name}{suffix}").is_file() for suffix in (".npz", ".json"))

    def run(self, left: list[Piece]) -> None:
        """Measures these, and says how long it will take."""
        clock = Clock(sum(piece.cost for piece in left))
        subject: Subject | None = None
        texts: list[Text] = []
        with progress("evaluate", clock.total) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="cache .* positions")  # `warn` has said it, once
            for number, piece in enumerate(left):
                if number == 0 or left[number - 1].model != piece.model:
                    del subject  # its memory is free before the next one comes
                    subject, texts = self._open(piece.model)
                assert subject is not None

                def advance(amount: float, title: str = self._title(piece)) -> None:
                    bar(amount)
                    clock.say(amount, title)

                self._measure(subject, texts[piece.text], piece, advance)

    def text(self, model: int, text: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of a cell's text what the results say, and its arrays `tokens` and `documents` (T,)."""
        with np.load(self._path(f"m{model}-t{text}.npz"), allow_pickle=False) as kept:
            return self._json(f"m{model}-t{text}"), {name: kept[name] for name in kept.files}

    def model(self, model: int) -> dict[str, Any]:
        """Of a model what the results say, `description`, and the number of its `sinks`."""
        found: dict[str, Any] = self._json(f"m{model}")
        return found

    def rows(self, model: int, text: int) -> list[Row]:
        """The rows of a cell whose pieces are done."""
        cell = [piece for piece in pieces(self.settings) if (piece.model, piece.text) == (model, text)]
        return [
            self._row(asked, [piece.name for piece in cell if piece.row == number])
            for number, asked in enumerate(self.settings.rows)
        ]

    def attention(self, model: int, text: int) -> Any:
        """What was found of the attention on the first position; None where nobody asked."""
        return self._json(Piece(model, text, ATTENTION, 0, 0).name) if self.settings.attention else None

    def _row(self, asked: Asked, names: list[str]) -> Row:
        nll, seconds, work = None, 0.0, 0
        for name in names:
            with np.load(self._path(f"{name}.npz"), allow_pickle=False) as kept:
                part = kept["nll"]
                nll = part if nll is None else np.where(np.isfinite(part), part, nll)
                seconds, work = seconds + float(kept["seconds"]), work + int(kept["work"])
        assert nll is not None
        return Row(asked, nll, seconds, work)

    def _open(self, model: int) -> tuple[Subject, list[Text]]:
        """Loads a model and gives it the texts in its tokens; keeps what the results say of both."""
        first, self._first = self._first, None
        subject = first if model == 0 and first is not None else load_subject(self.settings.models[model].options)
        warn(subject, self.settings)
        self._keep_json(f"m{model}", {"description": subject.description, "sinks": len(subject.sink_ids)})
        texts = [self._text(number, name, subject) for number, name in enumerate(self.settings.texts)]
        for number, text in enumerate(texts):
            self._keep_arrays(f"m{model}-t{number}", tokens=text.tokens.numpy(), documents=text.document_of)
            self._keep_json(f"m{model}-t{number}", text.description)
        return subject, texts

    def _text(self, number: int, name: str, subject: Subject) -> Text:
        kept = self._json(f"t{number}")
        with np.load(self._path(f"t{number}.npz"), allow_pickle=False) as arrays:
            tokens, documents = (torch.from_numpy(arrays[each]) for each in ("tokens", "documents"))
        text = Text(name, tokens, documents, tuple(kept["spelled"]), kept["whole"])
        if kept["tokenizer"] != fingerprint(subject.tokenizer):
            text = respell(text, subject.tokenizer)
            if len(text.tokens) < 2 * self.settings.size:
                raise too_few(len(text.tokens), self.settings.size)
        return text

    def _measure(self, subject: Subject, text: Text, piece: Piece, advance: Callable[[float], None]) -> None:
        if piece.row == ATTENTION:
            self._keep_json(piece.name, attention_to_first(subject, text))
            advance(piece.cost)
            return
        asked, begin = self.settings.rows[piece.row], time.perf_counter()
        if asked.cache is not None:
            nll, work = stream_text(subject, text, asked, self.settings.chunk, advance), len(text.tokens)
        else:
            assert asked.size is not None
            size, samples = asked.size, self.settings.samples
            targets = recomputed_tokens(len(text.tokens), self.settings.size, samples, self.settings.seed)
            some = targets[piece.part * WINDOWS : (piece.part + 1) * WINDOWS]
            nll = recompute_some(subject, text, size, some, self.settings.batch, lambda n: advance(n * size))
            work = len(some) * (size + len(subject.sink_ids))
        seconds = time.perf_counter() - begin
        self._keep_arrays(piece.name, nll=nll.astype(np.float32), seconds=seconds, work=work)

    def _title(self, piece: Piece) -> str:
        what = "attention" if piece.row == ATTENTION else self.settings.rows[piece.row].name
        several = {
            self.settings.models[piece.model].label: len(self.settings.models),
            self.settings.texts[piece.text]: len(self.settings.texts),
        }
        return ", ".join([*(name for name, count in several.items() if count > 1), what])

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _json(self, name: str) -> Any:
        return json.loads(self._path(f"{name}.json").read_text())

    def _keep_json(self, name: str, value: Any) -> None:
        self._put(f"{name}.json", lambda draft: draft.write_text(json.dumps(value)))

    def _keep_arrays(self, name: str, **arrays: Any) -> None:
        self._put(f"{name}.npz", lambda draft: np.savez(draft, **arrays))

    def _put(self, name: str, write: Callable[[Path], object]) -> None:
        """A file that is whole or not there, though ranks may write the same one."""
        path = self._path(name)
        draft = path.with_name(f".{uuid4().hex}-{name}")  # unlike a number of a process, on all machines
        write(draft)
        draft.replace(path)
