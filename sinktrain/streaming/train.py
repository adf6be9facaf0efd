"""Training with what a streaming cache lets a model see, instead of full attention.

No class of transformers is changed, and no hook is needed: while a band is at work the model attends through
`band_attention`, a function of transformers' `AttentionInterface`, and each attention module knows the band.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sinktrain.base.errors import UserError
from sinktrain.streaming.attach import attach
from sinktrain.streaming.band import Band
from sinktrain.streaming.kernels import Scores
from sinktrain.streaming.own_attention import give_forward, own_attention_modules, unused_mask
from sinktrain.streaming.positions import Positions, changes_with_length
from sinktrain.streaming.spec import CacheSpec, PositionRule

NAME = "sinktrain_band"
"""In transformers' `AttentionInterface`. It makes no masks for names that its mask interface does not know."""

_BANDED = "sinktrain_banded"
_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")


def band_spec(text: str, sinks: int, trained_length: int | None, rule: PositionRule) -> CacheSpec:
    """Reads `model.band`.

    Args:
        text: `x+y`.
        sinks: k, how many sink tokens the model has.
        trained_length: positions that the model was trained for; None if that is not known.
        rule: which distance the sinks are seen at.

    Raises:
        UserError: it is no cache, does not keep the sinks, or lets the model see more than it was trained for.
    """
    spec = CacheSpec.parse(text, "model.band")
    if spec.size is None:
        raise UserError("model.band dense: is full attention; leave it out, or write x+y, such as 1+1023.")
    if spec.sinks < sinks:
        raise UserError(f"model.band {spec}: keeps {spec.sinks} of the model's {sinks} sinks; keep {sinks} or more.")
    if rule not in ("cache", "original"):
        raise UserError(f"model.band_rule {rule}: unknown; choose cache or original.")
    if rule == "cache" and trained_length is not None and spec.size + 1 > trained_length:
        raise UserError(
            f"model.band {spec}: lets the model see {spec.size + 1} positions at once, more than the {trained_length} "
            f"that it was trained for; use {spec.sinks}+{max(1, trained_length - spec.sinks - 1)} or less."
        )
    return spec


class Banded:
    """A model that is trained with the band of a cache: what `begin` and `end` do to it.

    Args:
        model: a causal language model, built.
        spec: the cache, not `dense`.
        rule: which distance the sinks are seen at.

    Raises:
        UserError: the model has no streaming form, or attention dropout.
    """

    def __init__(self, model: PreTrainedModel, spec: CacheSpec, rule: PositionRule = "cache") -> None:
        training = model.training
        model.eval()
        try:
            positions = Positions.probe(model, spec.longest(rule))
            attach(model)
        finally:
            model.train(training)
        _check(model)
        self.model, self.band = model, Band(spec, rule, positions)
        self._own = own_attention_modules(model)
        self._before: str | None = None
        setattr(model, _BANDED, self)
        for module in model.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.band = self.band  # type: ignore[assignment]

    @property
    def at_work(self) -> bool:
        """Whether the model attends with the band now."""
        return self._before is not None

    def begin(self) -> None:
        """From here on the model attends with the band, in forwards and in what a backward pass computes anew."""
        if self._before is None:
            self._before = self.model.config._attn_implementation
            self.model.config._attn_implementation = NAME
            for part, forward in self._own:
                give_forward(part, functools.partial(forward, part, _attend_unrotated))

    def end(self) -> None:
        """Gives the model its own attention back."""
        if self._before is not None:
            self.model.config._attn_implementation, self._before = self._before, None
            for part, _ in self._own:
                give_forward(part, None)

    def inputs(self, input_ids: Tensor, position_ids: Tensor | None = None) -> dict[str, Any]:
        """The arguments of a forward over samples (B, T), for which the band begins if it has not.

        Raises:
            UserError: several documents are packed into a sample.
        """
        if position_ids is not None:
            raise UserError(
                f"--data.packing document: packs texts that do not see each other, which model.band {self.band.spec} "
                "cannot; use --data.packing chunk, or leave model.band out."
            )
        self.begin()
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if self._own:
            inputs["attention_mask"] = unused_mask(self.model, *input_ids.shape)
        return inputs

    def visible(self, length: int) -> int:
        """How many of the keys of a sample of `length` a query sees at most."""
        return min(length, (self.band.spec.size or length) + 1)


@contextmanager
def band_aside(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, a model that is trained with a band attends as if it were not."""
    banded: Banded | None = getattr(model, _BANDED, None)
    if banded is None or not banded.at_work:
        yield
        return
    banded.end()
    try:
        yield
    finally:
        banded.begin()


def _check(model: PreTrainedModel) -> None:
    """Refuses what would be trained otherwise than it streams."""
    text: Any = model.config.get_text_config()
    names = [*_DROPOUT, "hidden_dropout"] if model.config.model_type == "bloom" else list(_DROPOUT)
    places = (text, getattr(text, "attn_config", None))
    dropped = [(name, rate) for place in places for name in names if (rate := getattr(place, name, 0.0) or 0.0)]
    if dropped:
        name, rate = dropped[0]
        raise UserError(f"model.band: model.config has {name} {rate}, which a band does not know; set it to 0.")
    if changes_with_length(model):
        raise UserError(
            "model.band: the model's rotation depends on the length of the text (RoPE scaling dynamic or longrope), so "
            "that a long sample would be rotated otherwise than a stream; leave it out, or use another model."
        )


def band_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    rotated: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (B, H, T, D), key and value (B, H_kv, T, D).

    Args:
        module: the attention module, which has the `Band`.
        query: of whole samples.
        key: of the same positions.
        value: of these.
        attention_mask: must be None: samples have no padding.
        scaling: multiplies the scores, by default D^-1/2.
        sliding_window: W, if the layer has a window of its own.
        softcap: bounds the scores (Gemma 2).
        s_aux: (H,) the layer's sink logits (gpt-oss).
        dropout: of the weights; must be 0.
        rotated: whether queries and keys are.
        **kwargs: whatever else transformers passes.

    Returns:
        The output (B, T, H, D_v), and None for the weights.

    Raises:
        UserError: these are not whole samples, or there is dropout.
    """
    if dropout:
        raise UserError(f"model.band: model.config has attention dropout {dropout}; set it to 0.")
    if query.shape[2] != key.shape[2] or attention_mask is not None:
        raise UserError(
            "model.band: this model attends as in training now, to whole samples without padding or a cache; call "
            "`end` of its Banded before anything else (a Trainer does when it is done)."
        )
    band: Band = module.band  # type: ignore[assignment]
    if not rotated:
        query, key = band.rotated(module, query, key)
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, band.positions.slopes)
    output = band.attend(module, query, key, value, scores, window=sliding_window, s_aux=s_aux)
    return output.transpose(1, 2).contiguous(), None


_attend_unrotated = functools.partial(band_attention, rotated=False)  # for modules with code of their own
AttentionInterface.register(NAME, band_attention)
