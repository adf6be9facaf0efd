"""Looking at a model in the middle of its training, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch

from sinktrain.training.throughput import not_training


@contextmanager
def beside_training(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Inside the block the model evaluates, without gradients and uncompiled; after it, it is as it was.

    Uncompiled, because what is compiled is compiled for the shapes of training alone. The random numbers of training
    are not touched, because a model that evaluates draws none. `Throughput` leaves the block out.
    """
    parts = [(part, part.training, part._compiled_call_impl) for part in module.modules()]
    with not_training(trainer), torch.no_grad():
        module.eval()
        for part, *_ in parts:
            part._compiled_call_impl = None
        try:
            yield
        finally:
            for part, training, compiled in parts:
                part.training, part._compiled_call_impl = training, compiled
