"""Which token comes next: the warpers of transformers, greedy at temperature 0, and never a sink."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sinktrain.base.errors import UserError, at_least
from sinktrain.evaluation.subject import Subject


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only that many of the most probable tokens are drawn from; 0 for all.
        top_p: only the most probable tokens that make up this probability together; 1 for all.
        seed: of the random numbers.

    Raises:
        UserError: a number is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("--temperature", self.temperature, 0)
        at_least("--top_k", self.top_k, 0)
        at_least("--seed", self.seed, 0)
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p}: is no probability above 0; give 1 for all tokens, or less.")


class Sampler:
    """Draws token ids from logits.

    Args:
        subject: whose sinks, and rows of the embedding without a token, are never drawn.
        sampling: how.
    """

    def __init__(self, subject: Subject, sampling: Sampling) -> None:
        self.greedy = sampling.temperature == 0
        self.generator = torch.Generator(device=subject.model.device).manual_seed(sampling.seed)
        self.processors = LogitsProcessorList()
        if never := _never_generated(subject):
            self.processors.append(SuppressTokensLogitsProcessor(never, device=str(subject.model.device)))
        if self.greedy:
            return
        self.processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self.processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.processors.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: Tensor) -> int:
        """The id of the next token, from its logits (V,)."""
        # None of the processors looks at the tokens before, which nobody keeps.
        scores = self.processors(None, logits[None].float())  # type: ignore[arg-type]
        if self.greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator))


def _never_generated(subject: Subject) -> list[int]:
    rows = int(subject.model.config.get_text_config().vocab_size)
    config = subject.model.generation_config
    suppressed = (config.suppress_tokens if config is not None else None) or ()
    return sorted({*subject.sink_ids, *suppressed, *range(len(subject.tokenizer), rows)})
