"""EleutherAI's evaluation harness on a model with sinks: exactly these in front of every window, and none lost.

The harness puts a prefix before the first of several windows only (lm-evaluation-harness, issue 2382), and cuts what is
too long from the left, where the sinks are. Needs the extra `eval`.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from sinktrain.evaluation.subject import Subject

Request = tuple[Any, list[int], list[int]]
"""What the request was, the ids of its context and of its continuation."""


class SinkLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """The harness's model of transformers, with sinks.

    Args:
        subject: a model whose tokenizer has sinks.
        batch: windows, or prompts, at once.
        length: positions of a window, sinks included; by default what the model was trained for.
    """

    def __init__(self, subject: Subject, batch: int, length: int | None = None) -> None:
        super().__init__(
            pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch, max_length=length,
            add_bos_token=False, prefix_token_id=subject.sink_ids[-1], device=str(subject.model.device),
        )  # fmt: skip
        self._sinks = subject.sink_ids
        self._scoring = False

    @property
    def max_length(self) -> int:
        """Positions that are left for the text; all of them where windows are scored, which hold the sinks by then."""
        return int(super().max_length) - (0 if self._scoring else len(self._sinks))

    def behind_sinks(self, ids: list[int], room: int) -> list[int]:
        """The last of `ids` that fit into `room`, their own sinks left out, behind the sinks."""
        while ids and ids[0] in self._sinks:
            ids = ids[1:]
        return self._sinks + ids[max(0, len(ids) - room) :]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text without sinks, but for those that a chat template has written into it."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        windows = [self._windows(*request) for request in requests]
        flat = [window for parts in windows for window in parts]
        self._scoring = True
        try:
            scored = iter(super()._loglikelihood_tokens(flat, disable_tqdm, override_bs))
        finally:
            self._scoring = False
        found = [list(islice(scored, len(parts))) for parts in windows]
        return [(sum(value for value, _ in parts), all(greedy for _, greedy in parts)) for parts in found]

    def _windows(self, what: Any, context: list[int], continuation: list[int]) -> list[Request]:
        """A request behind the sinks; or parts of one that no window holds, each after what fits of the text before."""
        room, size = self.max_length + 1, self.max_length  # the last token is predicted, and no input
        if len(continuation) <= room:
            return [(what, self.behind_sinks(context, room - len(continuation)), continuation)]
        parts = [(start, continuation[start : start + size]) for start in range(0, len(continuation), size)]
        return [  # without `what`, by which the harness would take the part's answer for that of the whole
            (None, self.behind_sinks(context + continuation[:start], room - len(part)), part) for start, part in parts
        ]

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Prompts (B, T), padded, each behind the sinks; and which positions are no padding."""
        room = left_truncate_len or self.max_length
        rows = [self.behind_sinks(self.tok_encode(string), room) for string in strings]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            place = slice(longest - len(row), None) if padding_side == "left" else slice(len(row))
            ids[n, place], mask[n, place] = torch.tensor(row), 1
        return ids, mask
