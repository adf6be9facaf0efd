"""The figures of `sinktrain diagnose`: where the attention of a model goes, and what stands there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.evaluation.activations import Hidden, beside_others, massive
from sinktrain.evaluation.attention import THRESHOLD, sink_share
from sinktrain.evaluation.subject import Subject
from sinktrain.evaluation.watchers import Along, Entropy, Maps, Norms, Pooled
from sinktrain.streaming.observe import observe
from sinktrain.streaming.spec import CacheSpec
from sinktrain.streaming.stream_share import stream_share
from sinktrain.streaming.watchers import Columns

Arrays = dict[str, NDArray[Any]]

TEXT_PLACES, STRONGEST = 4, 5
_AT_ONCE = 2048  # positions a forward pass, so that memory stays small


@torch.no_grad()
def short_texts(subject: Subject, rows: Tensor) -> tuple[dict[str, Any], Arrays]:
    """Sink_k, entropy, massive activations and norms, from sequences `rows` (S, T) that begin with the model's sinks.

    Returns:
        `sink_metric`, `entropy`, `massive_activations` and `norms` of diagnosis.json, and arrays of maps.npz; both are
        described in `sinktrain.evaluation.diagnose`.

    Raises:
        UserError: the model's attention cannot be seen, or is not finite.
    """
    sinks = len(subject.sink_ids)
    observe(subject.model, rows[:1], check=True, option="model.name")
    places = _places(sinks, rows.shape[1])
    parts = [_look(subject, part, len(places)) for part in rows.split(max(1, _AT_ONCE // rows.shape[1]))]
    found = {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}
    alpha = found["alpha"]
    if "outlet" in found:
        places, alpha = [*places, "outlet"], torch.cat((alpha, found["outlet"][..., None]), dim=-1)
    if not bool(alpha.isfinite().all()):
        raise UserError(f"model.name {subject.options.name}: its attention is not finite; its weights are broken.")
    norms = {"hidden": found["hidden"], "keys": found["keys"], "values": found["values"]}
    record = {
        "sink_metric": {
            "threshold": THRESHOLD,
            "sequences": len(rows),
            "length": rows.shape[1],
            **_metric(alpha, places),
        },
        "entropy": {
            "mean": float(found["entropy"].mean()),
            "even": float(found["even"].mean()),
            "by_layer": found["entropy"].mean(dim=(0, 2)).tolist(),
        },
        "massive_activations": massive(found["largest"], found["median"], found["place"].long()),
        "norms": {name: beside_others(each, sinks) for name, each in norms.items()},
    }
    arrays = {
        "places": np.array(places),
        "alpha": _array(alpha.mean(dim=0).permute(2, 0, 1)),
        "entropy": _array(found["entropy"].mean(dim=0)),
        **{f"norm_{name}": _array(each.mean(dim=0)) for name, each in norms.items()},
    }
    return record, arrays


def _look(subject: Subject, rows: Tensor, places: int) -> dict[str, Tensor]:
    """What is measured of each of some sequences (B, T), each with B first."""
    columns, entropy, norms, hidden = Columns(range(places)), Entropy(), Norms(), Hidden()
    with hidden.at_work(subject.model):
        observe(subject.model, rows, columns, entropy, norms)
    found = {"alpha": columns.alpha, "entropy": entropy.mean, "even": entropy.even.expand(len(rows), -1)}
    if columns.outlet is not None:
        found["outlet"] = columns.outlet
    found |= {"keys": norms.keys, "values": norms.values, "hidden": hidden.norms}
    return found | {"largest": hidden.largest, "median": hidden.median, "place": hidden.place}


def _places(sinks: int, length: int) -> list[str]:
    names = ["sink"] if sinks == 1 else [f"sink_{k}" for k in range(sinks)]
    return [*names, *(f"text_{k + 1}" for k in range(min(TEXT_PLACES, length - sinks)))]


def _metric(alpha: Tensor, places: list[str]) -> dict[str, Any]:
    """From alpha (S, layers, H, P): Sink_k of every place, and the heads that give most to position 0."""
    first = alpha[..., 0].mean(dim=0)  # (layers, H)
    best = first.flatten().topk(min(STRONGEST, first.numel()))
    strongest = [[*divmod(int(n), first.shape[1]), float(a)] for n, a in zip(best.indices, best.values, strict=True)]
    each = {
        name: {
            "heads": float(sink_share(alpha)[n]),
            "attention": float(alpha[..., n].mean()),
            "by_layer": alpha[..., n].mean(dim=(0, 2)).tolist(),
        }
        for n, name in enumerate(places)
    }
    return {"places": each, "strongest": strongest}


@torch.no_grad()
def short_map(subject: Subject, rows: Tensor) -> Arrays:
    """The mean attention and logits of every head over sequences (S, T) of a few tokens: see `Maps`."""
    maps = Maps()
    for part in rows.split(max(1, _AT_ONCE // rows.shape[1])):
        observe(subject.model, part, maps, rows=rows.shape[1])
    return {name: _array(mean) for name, mean in maps.means.items()}


@torch.no_grad()
def long_text(subject: Subject, row: Tensor, bins: int) -> tuple[dict[str, Any], Arrays]:
    """One long text (1, T) under full attention: `long`, `along_dense`, `entropy_long`; no T x T scores are made."""
    along, pooled, entropy = Along(), Pooled(row.shape[1], bins), Entropy()
    observe(subject.model, row, along, pooled, entropy)
    edges = log_edges(row.shape[1])
    arrays = {
        "along": edges[:-1],
        "along_dense": _array(in_buckets(along.share, edges)),
        "long": _array(pooled.map),
        "entropy_long": _array(entropy.mean[0]),
    }
    if pooled.outlet is not None:
        arrays["long_outlet"] = _array(pooled.outlet)
    record = {
        "tokens": row.shape[1],
        "along": edges[:-1].tolist(),
        "dense": arrays["along_dense"].mean(axis=0).tolist(),
        "entropy": {"mean": float(entropy.mean.mean()), "even": float(entropy.even.mean())},
    }
    return record, arrays


def streamed_text(subject: Subject, row: Tensor, spec: CacheSpec) -> tuple[dict[str, Any], Arrays]:
    """The same text through a cache: `along_stream`.

    Raises:
        UserError: the model has no streaming form.
    """
    share = stream_share(subject.model, row, spec)[0].mean(dim=1)  # (layers, T)
    stream = _array(in_buckets(share.cpu(), log_edges(row.shape[1])))
    return {"cache": str(spec), "stream": stream.mean(axis=0).tolist()}, {"along_stream": stream}


def log_edges(length: int) -> NDArray[np.int64]:
    """The positions at which buckets of queries begin, four an octave from 1 on, and `length` behind the last."""
    octaves = np.arange(0, 4 * np.log2(length))
    begins = np.unique(np.round(2 ** (octaves / 4)).astype(np.int64))
    return np.append(begins[begins < length], length)


def in_buckets(share: Tensor, edges: NDArray[np.int64]) -> Tensor:
    """(layers, T) by query to the mean (layers, buckets) in each bucket."""
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return torch.stack([share[:, begin:end].mean(dim=1) for begin, end in pairs], dim=1)


def _array(x: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = x.detach().cpu().numpy().astype(np.float32)
    return found
