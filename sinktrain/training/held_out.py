"""The fixed text that is looked at beside training: the same for every run on the same data, whatever its sink."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.data.prepared import PreparedText


def held_out(trainer: L.Trainer, module: Any, folder: str | None, option: str) -> list[NDArray[Any]]:
    """Validation tokens, an array (tokens,) for each prepared folder.

    Args:
        trainer: with a SinkDataModule, unless `folder` is given.
        module: with `tokenizer_fingerprint`.
        folder: a prepared one; None for those that the run trains or validates on.
        option: that named it.

    Raises:
        UserError: there is none, or it was made with another tokenizer.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    folders = [folder] if folder is not None else list(getattr(data, "folders", ()))
    if not folders:
        raise UserError(
            f"{option}: the run has no prepared text of its own; name a folder that `sinktrain prepare` made."
        )
    texts = [PreparedText(each, option) for each in folders]
    for text in texts:
        text.check_tokenizer(module.tokenizer_fingerprint)
    return [text.tokens("validation") for text in texts]


def fits(module: Any, positions: int, option: str) -> None:
    """Refuses more positions than the model is trained for; `option` is what asks for them, with its value."""
    trained: int | None = module.trained_length
    if trained is not None and positions > trained:
        raise UserError(
            f"{option}: makes {positions} positions, and the model is trained for {trained}; give "
            f"{positions - trained} less."
        )


def sequences(texts: list[NDArray[Any]], count: int, width: int, option: str) -> Tensor:
    """Sequences (count, width), int64, of texts that take turns, from evenly spread places of each.

    Raises:
        UserError: no text is that long.
    """
    long_enough = [text for text in texts if len(text) >= width]
    if not long_enough:
        raise UserError(f"{option}: no validation text has {width} tokens; prepare more, or ask for fewer.")
    rows: list[NDArray[Any]] = []
    for number, text in enumerate(long_enough):
        own = len(range(number, count, len(long_enough)))
        starts = np.linspace(0, len(text) - width, own).astype(np.int64)
        rows += [text[start : start + width] for start in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
