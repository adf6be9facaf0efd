"""The sink as a vocabulary entry of its own, put in front of every text by the tokenizer itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinktrain.base.errors import UserError
from sinktrain.sinks.chat_template import put_sinks_first
from sinktrain.sinks.config import SinkConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_SINK = re.compile(r"<sink(?:_(\d+))?>")


def sink_ids_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the sink tokens that `tokenizer` holds, in their order; empty when it holds none."""
    return [index for _, index in _sinks(tokenizer)]


def sink_tokens_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The sink tokens that `tokenizer` holds, as they are written, in their order; empty when it holds none."""
    return [token for token, _ in _sinks(tokenizer)]


def has_these_sinks(tokenizer: PreTrainedTokenizerBase, config: SinkConfig) -> bool:
    """Whether `tokenizer` has the sinks of `config` in front of every text already, so that a run goes on with them.

    Raises:
        UserError: it has other sinks, or a token of that name which is no sink.
    """
    held = dict(_sinks(tokenizer))
    if not held:
        return False
    if list(held) != config.tokens:
        raise UserError(
            f"model.name: has {', '.join(held)} already, and another sink cannot be added; go on with them by "
            f"sink.kind token and sink.count {len(held)}, or start from a model without a sink."
        )
    if front_of(tokenizer) != list(held.values()):
        raise UserError(
            f"model.tokenizer: holds a token {config.tokens[0]} that is not put in front of a text; start from a "
            "tokenizer without it."
        )
    return True


def front_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that `tokenizer` puts in front of a text by itself: BOS, or sinks, or none."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole: list[int] = tokenizer("a").input_ids
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def add_sink_tokens(tokenizer: PreTrainedTokenizerBase, config: SinkConfig) -> list[int]:
    """Gives `tokenizer` the sink tokens, in place, and returns their ids.

    The first becomes `bos_token`. `tokenizer("text")` then begins with the sinks, exactly once: with the
    `TemplateProcessing` post-processor, which goes into `tokenizer.json`, so that no engine needs code of ours. A BOS
    or EOS that the old post-processor put around a text is dropped, since training samples do not have it. The chat
    template, if there is one, prints the sinks and then what it printed before, the model's own BOS too.

    Raises:
        UserError: the tokenizer holds a sink already, has no room for one, or is not backed by `tokenizers`.
    """
    if not config.tokens:
        return []
    if held := sink_tokens_of(tokenizer):
        raise UserError(f"model.name: its tokenizer holds {held[0]} already; start from a model without a sink.")
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"model.tokenizer: {type(tokenizer).__name__} has no room for a token that stands in front of every text; "
            "use a tokenizer with a tokenizer.json."
        )
    before, bos = len(tokenizer), tokenizer.bos_token
    others = [*_extra_tokens(tokenizer), *config.tokens[1:]]
    tokenizer.add_special_tokens({"bos_token": config.tokens[0], "additional_special_tokens": others})
    ids = [tokenizer.get_vocab().get(token, -1) for token in config.tokens]
    if ids != list(range(before, before + config.count)):
        raise UserError(
            f"model.tokenizer: has no room for {config.tokens[-1]}; use a tokenizer that takes new vocabulary entries."
        )
    _put_in_front(tokenizer, config.tokens, ids)
    put_sinks_first(tokenizer, config.tokens, None if bos is None else str(bos))
    return ids


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves `tokenizer` as `from_pretrained` loads it, with `add_bos_token: true` where a single sink is its BOS.

    transformers goes by tokenizer.json and does not write that flag; older versions and other engines read it. With
    several sinks it would put only the first in front, so there the template in tokenizer.json speaks alone.
    """
    tokenizer.save_pretrained(folder)
    if len(sink_ids_of(tokenizer)) == 1:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}, indent=2) + "\n")


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """The tokenizer as it was before it got sinks: in a text, `<sink>` is four or five characters and no sink.

    It adds nothing to a text, and there is none where the tokenizer is not backed by `tokenizers`.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    sinks = set(sink_ids_of(tokenizer))
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] not in sinks]
    parts.update(post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(parts))


def _sinks(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """Each sink token with its id, in the order of their numbers."""
    vocabulary = tokenizer.get_vocab().items()
    found = [(int(match[1] or 0), *item) for item in vocabulary if (match := _SINK.fullmatch(item[0]))]
    return [(token, index) for _, token, index in sorted(found)]


def _extra_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens without a role of their own, which `add_special_tokens` would otherwise replace."""
    extra: Any = getattr(tokenizer, "extra_special_tokens", None) or []
    return list(extra.values() if isinstance(extra, dict) else extra)


def _put_in_front(tokenizer: PreTrainedTokenizerBase, tokens: list[str], ids: list[int]) -> None:
    from tokenizers import processors

    sinks = " ".join(tokens)
    template = processors.TemplateProcessing(
        single=f"{sinks} $A", pair=f"{sinks} $A $B", special_tokens=list(zip(tokens, ids, strict=True))
    )
    # transformers rebuilds the template from its own flags when told to, with the first sink alone
    vars(tokenizer)["_should_update_post_processor"] = False
    tokenizer.backend_tokenizer.post_processor = template
