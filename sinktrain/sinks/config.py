"""The settings of a sink."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sinktrain.base.errors import UserError

SinkKind = Literal["none", "token", "zero", "logit", "kv"]
SinkValue = Literal["learned", "zero"]
SinkInit = Literal["mean", "bos", "attended", "normal"]


@dataclass(frozen=True)
class SinkConfig:
    """How attention gets its outlet.

    Args:
        kind: where a head puts attention that it does not need.
            `none`: nowhere; the model is as it was.
            `token`: on learnable tokens in front of every sample (StreamingLLM, arXiv 2309.17453, section 4.2).
            `zero`: on a logit of 0 whose value is zero, the softmax-off-by-one (there, equation 2).
            `logit`: on a learned logit of each head, whose value is zero (gpt-oss, arXiv 2508.10925).
            `kv`: on a learned key and value of each key head, at no position ("KV biases" of Gu et al.,
            arXiv 2410.10781).
        count: how many sink tokens, k. With k > 1 all k must stay in the cache when streaming
            (StreamingLLM, arXiv 2309.17453, Table 10: two trained and one kept is worse than none).
        init: the new embedding rows: `mean` of all rows plus small noise, a copy of the `bos` row plus small
            noise, a copy of the row that draws most `attended` as the first token of a text, found by measurement, plus
            small noise, or `normal` with the spread of the existing rows.
        seed: of the noise, and of the first keys and values of `kv`.
        value: of `kv`: `learned`, or `zero` for a key alone (Gu et al.'s "K biases").
    """

    kind: SinkKind = "token"
    count: int = 1
    init: SinkInit = "mean"
    seed: int = 0
    value: SinkValue = "learned"

    def __post_init__(self) -> None:
        for option, known in (("kind", SinkKind), ("init", SinkInit), ("value", SinkValue)):
            if (chosen := getattr(self, option)) not in get_args(known):
                raise UserError(f"sink.{option} {chosen}: unknown; choose one of {', '.join(get_args(known))}.")
        if self.kind == "token" and self.count < 1:
            raise UserError(f"sink.count {self.count}: kind `token` needs at least 1; use sink.kind none for no sink.")
        if self.init == "attended" and self.kind != "token":
            raise UserError("sink.init attended: is an option of kind `token`; leave it out.")
        if self.has_outlet and self.count != 1:
            raise UserError(f"sink.count {self.count}: kind `{self.kind}` has one outlet a head; leave it at 1.")
        if self.kind != "kv" and self.value != "learned":
            raise UserError(f"sink.value {self.value}: is an option of kind `kv`; leave it out with `{self.kind}`.")

    @property
    def has_outlet(self) -> bool:
        """Whether the softmax of every head is changed, rather than the text."""
        return self.kind in ("zero", "logit", "kv")

    @property
    def tokens(self) -> list[str]:
        """The vocabulary entries: `<sink>`, or `<sink_0>`, `<sink_1>` ... when there are several."""
        if self.kind != "token":
            return []
        return ["<sink>"] if self.count == 1 else [f"<sink_{i}>" for i in range(self.count)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file."""
        return asdict(self)
