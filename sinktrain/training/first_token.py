"""The token that draws most attention when it stands first: found by measurement, for a sink to begin as its copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.streaming.observe import attention_columns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FINALISTS = 32
"""Tokens that are measured in front of long texts, after all were in front of one token."""

_TEXTS, _LENGTH, _ROWS = 8, 32, 1024


@torch.no_grad()
def most_attended(model: PreTrainedModel, vocabulary: int, seed: int = 0) -> int:
    """The id of the token on which, as the first of a text, the rest of the text attends most.

    Every token of the vocabulary is put in front of one other token first; the `FINALISTS` that draw most attention,
    mean over layers and heads, are then measured in front of 8 texts of 32 tokens, which the model has written itself,
    by alpha_1 of Gu et al. (arXiv 2410.10781, section 3.1), mean over heads and texts. It takes 2 tokens of a forward
    pass for each row of the vocabulary, and 8,448 more.

    Args:
        model: a causal language model, without a sink.
        vocabulary: how many of its rows are tokens.
        seed: of the texts.

    Raises:
        UserError: the model does not attend through the interface of transformers.
    """
    training = model.training
    model.eval()
    try:
        texts = _own_texts(model, vocabulary, seed)
        every = torch.arange(vocabulary, device=model.device)
        first = torch.cat([_attention(model, part, texts[:1, :1]) for part in every.split(_ROWS)])
        best = first.topk(min(FINALISTS, vocabulary)).indices
        alpha = torch.stack([_attention(model, token.expand(1), texts)[0] for token in best])
    except UserError as error:
        raise UserError(
            f"sink.init attended: cannot see the attention of {model.config.model_type}; use sink.init mean."
        ) from error
    finally:
        model.train(training)
    return int(best[alpha.argmax()])


def _attention(model: PreTrainedModel, tokens: Tensor, texts: Tensor) -> Tensor:
    """(n,) the attention on each of `tokens` (n,) in front of `texts` (m, L): mean over later queries, heads, texts."""
    rows = torch.cat((tokens.repeat_interleave(len(texts))[:, None], texts.repeat(len(tokens), 1)), dim=1)
    alpha, _ = attention_columns(model, rows, [0], after=1)
    return alpha.float().mean(dim=(1, 2, 3)).view(len(tokens), len(texts)).mean(dim=1)


def _own_texts(model: PreTrainedModel, vocabulary: int, seed: int) -> Tensor:
    """Texts (8, 32) that the model writes, each from another token, drawn from its own distribution."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (_TEXTS, 1), generator=generator).to(model.device)
    while ids.shape[1] < _LENGTH + 1:
        logits = model(input_ids=ids, use_cache=False).logits[:, -1, :vocabulary].float().cpu()
        new = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        ids = torch.cat((ids, new.to(ids.device)), dim=1)
    return ids[:, 1:]
