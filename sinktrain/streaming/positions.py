"""How a model tells positions apart, found by asking the model and not from a list of architectures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sinktrain.base.errors import UserError
from sinktrain.sinks.outlet import outlets_aside
from sinktrain.streaming.own_attention import alibi_slopes
from sinktrain.streaming.rotary import Rotary


@dataclass(frozen=True)
class Positions:
    """What each layer of a model does with positions.

    Args:
        rotary: for each layer, its rotation; None for one without (NoPE, ALiBi).
        slopes: (H,) float64, ALiBi's penalty a position of distance (arXiv 2108.12409, section 3), for all layers.
    """

    rotary: tuple[Rotary | None, ...]
    slopes: Tensor | None = None

    @property
    def kind(self) -> str:
        """The name for it: `rotary`, `rotary and none` (some layers have no positions), `alibi` or `none`."""
        if self.slopes is not None:
            return "alibi"
        if None not in self.rotary:
            return "rotary"
        return "rotary and none" if any(self.rotary) else "none"

    @classmethod
    def probe(cls, model: PreTrainedModel, longest: int | None = None) -> Positions:
        """Finds out how `model` encodes positions, and proves it in every layer.

        A single token attends to itself alone, so its hidden states do not depend on its position: its keys at
        position 0 and at position p must differ by the rotation, in every layer.

        Args:
            model: a causal language model.
            longest: positions that the stream lets the model see at once, for scalings whose frequencies depend on
                the length of the text (`dynamic`, `longrope`). They are held at those of this length.

        Raises:
            UserError: the model has no streaming form, or what it caches is not finite.
        """
        refuse_what_cannot_stream(model)
        layers = int(model.config.get_text_config().num_hidden_layers)
        if (slopes := alibi_slopes(model)) is not None:
            return cls((None,) * layers, slopes)
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise no_streaming_form(model, "it takes no position ids, so its positions cannot be told")
        noted = {position: _noted_at(model, position) for position in (0, *_PROBED)}
        keys = {position: {layer: key for layer, (key, _) in at.items()} for position, at in noted.items()}
        if set(keys[0]) != set(range(layers)):
            raise no_streaming_form(
                model, f"only {len(keys[0])} of its {layers} layers have keys and values of their own"
            )
        # NaN is unlike itself, and would be taken for what depends on the position.
        if not all(bool(part.isfinite().all()) for at in noted.values() for pair in at.values() for part in pair):
            raise UserError(
                "model.name: what it caches is not finite; use --model.dtype float32, or a model whose weights are "
                "whole."
            )
        values = {position: [value for _, value in at.values()] for position, at in noted.items()}
        candidates = _candidates(model, longest)
        far = functools.cache(lambda: _noted_at(model, _FAR))
        found = [
            _layer_rotary({p: keys[p][layer] for p in keys}, lambda n=layer: far()[n][0], candidates)  # type: ignore[misc]
            for layer in range(layers)
        ]
        still = all(_alike(a, b) for p in _PROBED for a, b in zip(values[0], values[p], strict=True))
        if (_UNEXPLAINED in found or not still) and _learned(model):
            raise no_streaming_form(model, "its positions are learned, absolute and end with its training length")
        if not still:
            raise no_streaming_form(model, "what it caches beside its keys depends on the position")
        if _UNEXPLAINED in found:
            raise no_streaming_form(model, "its keys do not follow one rotation by position in every layer")
        return cls(tuple(_shared(found)))  # type: ignore[arg-type]


_PROBED = (3, 7)
"""Positions at which keys are compared with those at 0: small, so that the float32 angles of the model are exact."""

_FAR = 251
"""A position that tells slow frequencies apart, where several fit at those."""

_UNEXPLAINED = "unexplained"


def refuse_what_cannot_stream(model: PreTrainedModel) -> None:
    """Raises UserError for models whose state is not a list of keys and values, or that share them between layers."""
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False) or not hasattr(config, "num_hidden_layers"):
        raise no_streaming_form(model, "it keeps a recurrent state (a state-space model), not only keys and values")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise no_streaming_form(model, f"it has layers of type {', '.join(sorted(kinds))}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise no_streaming_form(model, "some of its layers share their keys and values")


def changes_with_length(model: PreTrainedModel) -> bool:
    """Whether the frequencies of a rotation depend on how long the text is (scalings `dynamic` and `longrope`)."""
    kinds: list[Any] = [getattr(module, "rope_type", "default") for module in model.modules()]
    named = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any("dynamic" in name or name == "longrope" for name in named)


def no_streaming_form(model: PreTrainedModel, why: str) -> UserError:
    """The error for a model that cannot stream."""
    return UserError(
        f"model.name {model.config.name_or_path or model.config.model_type}: {type(model).__name__} cannot stream here "
        f"since {why}; use a model with rotary or ALiBi positions (Llama, Mistral, Qwen, GPT-NeoX, Bloom ...)."
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    rough = a.dtype in (torch.bfloat16, torch.float16)
    return bool((a - b).abs().max() <= (3e-2 if rough else 1e-4) * a.abs().max())


def _learned(model: PreTrainedModel) -> bool:
    """Whether it has a table of positions, such as GPT-2's `wpe` and OPT's `embed_positions`."""
    tables = [name.split(".")[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Embedding)]
    return any(name == "wpe" or "position" in name for name in tables)


def _shared(found: list[Rotary | None]) -> list[Rotary | None]:
    """One object for all layers that rotate alike, so that a step makes their angles once."""
    kept: list[Rotary] = []
    shared: list[Rotary | None] = []
    for rotary in found:
        if rotary is not None:
            rotary = next((other for other in kept if other.equals(rotary)), rotary)
            kept.append(rotary)
        shared.append(rotary)
    return shared


class _Recorder(Cache):
    """A cache that notes what it is given and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.noted: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.noted[layer_idx] = key_states.detach(), value_states.detach()
        return key_states, value_states


@torch.no_grad()
def _noted_at(model: PreTrainedModel, position: int) -> dict[int, tuple[Tensor, Tensor]]:
    """The keys (8, H, 1, D) and values of every layer for eight single-token texts whose token stands at `position`."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.linspace(0, vocabulary - 1, 8, device=model.device).long()[:, None]
    recorder, modes = _Recorder(), [(part, part.training) for part in model.modules()]
    model.eval()  # dropout would make the same key another one
    places = torch.full_like(ids, position)
    try:
        with outlets_aside(model):  # which would make a token attend to something besides itself
            model(input_ids=ids, position_ids=places, past_key_values=recorder, use_cache=True)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise no_streaming_form(model, f"it does not run with a cache of ours ({error})") from error
    finally:
        for part, mode in modes:
            part.training = mode
    return recorder.noted


def _candidates(model: PreTrainedModel, longest: int | None) -> list[tuple[Tensor, Tensor]]:
    """The frequencies found in the model: those it uses at small positions, and those for a text of `longest`."""
    found: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or name.endswith("original_inv_freq"):
                continue
            pair = _frequencies(module, name, buffer.detach(), longest)
            if not any(torch.equal(pair[0], a) and torch.equal(pair[1], b) for a, b in found):
                found.append(pair)
    return found


def _frequencies(module: Any, name: str, buffer: Tensor, longest: int | None) -> tuple[Tensor, Tensor]:
    layer_type = name.removesuffix("inv_freq").rstrip("_") or None
    kind = getattr(module, "rope_type", "default")
    kind = kind if isinstance(kind, str) else kind[layer_type]
    if kind != "longrope" and "dynamic" not in kind:
        return buffer.double(), buffer.double()
    at_start = getattr(module, name.replace("inv_freq", "original_inv_freq")).detach().to(buffer.device)
    which = {} if layer_type is None else {"layer_type": layer_type}
    longest = longest or int(module.config.max_position_embeddings)
    lasting, _ = ROPE_INIT_FUNCTIONS[kind](module.config, buffer.device, seq_len=longest, **which)
    return at_start.double(), lasting.double()


def _layer_rotary(
    keys: dict[int, Tensor], far: Callable[[], Tensor], candidates: list[tuple[Tensor, Tensor]]
) -> Rotary | str | None:
    """The rotation that explains a layer's `keys` by position; None if they do not depend on it.

    Near positions are exact but cannot tell slow frequencies apart in bfloat16; where several rotations explain them,
    the keys `far` away decide.
    """
    start, width = keys[0], keys[0].shape[-1]
    # Dimension by dimension: what is rotated may be much smaller than what is not.
    scale = torch.stack([key.abs().amax(dim=(0, 1, 2)) for key in keys.values()]).amax(dim=0).double()
    tolerance = (3e-2 if start.dtype in (torch.bfloat16, torch.float16) else 1e-4) * scale
    if all(bool(((start - keys[p]).abs() <= tolerance).all()) for p in _PROBED):
        return None
    fitting: list[tuple[Rotary, Rotary]] = []
    for at_start, lasting in candidates:
        for interleaved in (False, True):
            for begin in dict.fromkeys((0, width - 2 * at_start.numel())):
                rotary = Rotary(at_start, interleaved, begin)
                if begin >= 0 and 2 * at_start.numel() <= width and _explains(rotary, keys, tolerance):
                    fitting.append((rotary, Rotary(lasting, interleaved, begin)))
    if len(fitting) > 1:
        away, there = torch.tensor([_FAR], device=start.device), far()
        fitting.sort(key=lambda pair: float((pair[0].turn(start, away) - there).abs().sum()))
    return fitting[0][1] if fitting else _UNEXPLAINED


def _explains(rotary: Rotary, keys: dict[int, Tensor], tolerance: Tensor) -> bool:
    for position in _PROBED:
        turned = rotary.turn(keys[0], torch.tensor([position], device=keys[0].device))
        if not bool(((turned - keys[position]).abs() <= tolerance).all()):
            return False
    return True
