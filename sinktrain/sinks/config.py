"""The settings of a sink."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sinktrain.base.errors import UserError

SinkKind = Literal["none", "token"]
SinkInit = Literal["mean", "bos", "normal"]


@dataclass(frozen=True)
class SinkConfig:
    """How attention gets its outlet.

    Args:
        kind: `token` puts learnable sink tokens in front of every sample; `none` leaves the model as it is.
        count: how many sink tokens, k. With k > 1 all k must stay in the cache when streaming
            (StreamingLLM, arXiv 2309.17453, Table 10: two trained and one kept is worse than none).
        init: the new embedding rows: `mean` of all rows plus small noise, a copy of the `bos` row plus small
            noise, or `normal` with the spread of the existing rows.
        seed: of the noise.
    """

    kind: SinkKind = "token"
    count: int = 1
    init: SinkInit = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(SinkKind):
            raise UserError(f"sink.kind {self.kind}: unknown; choose one of {', '.join(get_args(SinkKind))}.")
        if self.init not in get_args(SinkInit):
            raise UserError(f"sink.init {self.init}: unknown; choose one of {', '.join(get_args(SinkInit))}.")
        if self.kind == "token" and self.count < 1:
            raise UserError(f"sink.count {self.count}: kind `token` needs at least 1; use sink.kind none for no sink.")

    @property
    def tokens(self) -> list[str]:
        """The vocabulary entries: `<sink>`, or `<sink_0>`, `<sink_1>` ... when there are several."""
        if self.kind == "none":
            return []
        return ["<sink>"] if self.count == 1 else [f"<sink_{i}>" for i in range(self.count)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file."""
        return asdict(self)
