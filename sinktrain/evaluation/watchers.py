"""What the diagnosis looks at in the attention of a model: watchers for `sinktrain.streaming.observe`.

Each keeps sums over texts, no weights. Figures are means over all texts that were observed (of T positions each).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinktrain.streaming.watchers import Block, Watcher, add


class Maps(Watcher):
    """The mean attention and the mean logits of each head, at every pair of positions, of short texts.

    The attention logits averaged over 256 sentences of length 16 are StreamingLLM's Figures 2 and 7 (arXiv 2309.17453).
    A logit is what the softmax is taken of: scaled, and capped in a model that caps. A pair that is not seen has no
    logit and is no part of a mean: NaN in the map of logits, 0 in that of probabilities.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._texts = 0

    def block(self, block: Block) -> None:
        """Adds a layer, which must come as one block."""
        assert block.weights.shape[2:] == (block.length, block.length)
        if block.layer == 0:
            self._texts += len(block.weights)
        found = {"logits": block.logits, "probabilities": block.weights}
        if block.outlet is not None and block.outlet_logits is not None:
            found |= {"outlet_logits": block.outlet_logits, "outlet_probabilities": block.outlet}
        for name, each in found.items():
            add(self._sums.setdefault(name, {}), block.layer, each.double().sum(dim=0))

    @property
    def means(self) -> dict[str, Tensor]:
        """`logits`, `probabilities` (layers, H, T, T); of an outlet, `outlet_...` (layers, H, T) by query."""
        found = {name: torch.stack(list(sums.values())) / self._texts for name, sums in self._sums.items()}
        found["logits"] = found["logits"].masked_fill(found["logits"].isneginf(), float("nan"))
        return found


class Pooled(Watcher):
    """The attention of each layer, mean over heads, pooled: from each bin of queries to each bin of keys.

    Position i of T is in bin floor(i bins / T). A cell is the mean, over the queries of a bin, of all that they give to
    the keys of the other; rows and `outlet` sum to 1.
    """

    def __init__(self, length: int, bins: int) -> None:
        self.bins = min(bins, length)
        self._bin_of = torch.arange(length) * self.bins // length
        self._count = self._bin_of.bincount(minlength=self.bins)
        self._sums: dict[int, Tensor] = {}
        self._outlets: dict[int, Tensor] = {}

    def block(self, block: Block) -> None:
        """Pools keys, then queries."""
        weights = block.weights.mean(dim=(0, 1))  # (R, N)
        bin_of = self._bin_of.to(weights.device)
        rows = bin_of[block.first : block.first + len(weights)]
        columns = bin_of[block.low : block.low + weights.shape[1]]
        keys = weights.new_zeros(len(weights), self.bins).index_add_(1, columns, weights)
        add(self._sums, block.layer, keys.new_zeros(self.bins, self.bins).index_add_(0, rows, keys))
        if block.outlet is not None:
            outlet = block.outlet.mean(dim=(0, 1))
            add(self._outlets, block.layer, outlet.new_zeros(self.bins).index_add_(0, rows, outlet))

    @property
    def map(self) -> Tensor:
        """(layers, bins, bins) by layer, bin of the query, bin of the key."""
        return torch.stack([each.cpu() for each in self._sums.values()]) / self._count[:, None]

    @property
    def outlet(self) -> Tensor | None:
        """(layers, bins) by bin of the query, or None."""
        outlets = [each.cpu() for each in self._outlets.values()]
        return torch.stack(outlets) / self._count if outlets else None


class Along(Watcher):
    """The attention of each layer on position 0, mean over heads and texts, as the query moves along the text."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = {}

    def block(self, block: Block) -> None:
        """Appends a part of the text."""
        self._parts.setdefault(block.layer, []).append(block.on(0).mean(dim=(0, 1)).cpu())

    @property
    def share(self) -> Tensor:
        """(layers, T) by query."""
        return torch.stack([torch.cat(parts) for parts in self._parts.values()])


class Entropy(Watcher):
    """The entropy of the attention of each head, in nats, mean over the queries from 1 on and the texts.

    The outlet counts as one more key. `even` is what it would be if all that a query sees got the same.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._even: dict[int, Tensor] = {}

    def block(self, block: Block) -> None:
        """Adds a part of the mean."""
        entropy, seen = torch.special.entr(block.weights).sum(dim=-1), block.logits[0, 0].isfinite().sum(dim=-1)
        if block.outlet is not None:
            entropy, seen = entropy + torch.special.entr(block.outlet), seen + 1
        skip, count = max(0, 1 - block.first), block.length - 1
        add(self._sums, block.layer, entropy[..., skip:].sum(dim=-1) / count)
        add(self._even, block.layer, seen[skip:].double().log().sum() / count)

    @property
    def mean(self) -> Tensor:
        """(B, layers, H)."""
        return torch.stack(list(self._sums.values()), dim=1)

    @property
    def even(self) -> Tensor:
        """(layers,)."""
        return torch.stack(list(self._even.values()))


class Norms(Watcher):
    """The Euclidean norms of keys and values, mean over their heads (Gu et al., arXiv 2410.10781, section 3)."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def layer(self, number: int, key: Tensor, value: Tensor) -> None:
        """Keeps (B, T) of each."""
        self._keys[number], self._values[number] = key.norm(dim=-1).mean(dim=1), value.norm(dim=-1).mean(dim=1)

    @property
    def keys(self) -> Tensor:
        """(B, layers, T)."""
        return torch.stack(list(self._keys.values()), dim=1)

    @property
    def values(self) -> Tensor:
        """(B, layers, T)."""
        return torch.stack(list(self._values.values()), dim=1)
