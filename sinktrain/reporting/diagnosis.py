"""What `sinktrain diagnose` wrote, read and checked: attention maps, and the figures around them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sinktrain.base.errors import UserError
from sinktrain.reporting.measurements import label_of
from sinktrain.reporting.reading import Fields, read_json
from sinktrain.reporting.sources import Sources

VERB = "sinktrain diagnose"
MAPS = ("logits", "probabilities")
Maps = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Diagnosis:
    """One model's diagnosis.

    Args:
        label: the model's short name.
        sinks: how many sink tokens stand in front.
        figures: what was measured, and its value in words.
        logits: (layers, T, T), means over heads and texts, NaN where nothing is seen.
        probabilities: (layers, T, T), the same.
        sequences: how many texts they are means over.
        along: (buckets,) positions where a bucket of queries begins.
        curves: attention to position 0 by bucket, `dense` and the cache that it streamed through.
        sources: diagnosis.json, and maps.npz.
    """

    label: str
    sinks: int
    figures: dict[str, str]
    logits: Maps
    probabilities: Maps
    sequences: int
    along: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]
    sources: tuple[int, ...]

    @property
    def layers(self) -> list[int]:
        """Layers to show: the first two, as the paper does, then the middle and the last."""
        last = len(self.logits) - 1
        return sorted({0, min(1, last), last // 2, last})


def load_diagnosis(path: Path, option: str, sources: Sources) -> Diagnosis:
    """Reads diagnosis.json and the maps.npz beside it.

    Raises:
        UserError: one of them or a field is missing, damaged or of another schema.
    """
    data = read_json(path, option, VERB)
    maps = path.with_name("maps.npz")
    with Fields(option, path, VERB):
        means = [_heads_mean(array) for array in _arrays(maps, option)]
        long = data.get("long") or {}
        curves = {"dense": long.get("dense"), str(long.get("cache")): long.get("stream")}
        sink = data["model"].get("sink")
        command = str(data["command"])
        return Diagnosis(
            label=label_of(data["model"]),
            sinks=int(sink["count"]) if sink and sink["kind"] == "token" else 0,
            figures=dict(_figures(data)),
            logits=means[0],
            probabilities=means[1],
            sequences=int(data["maps"]["sequences"]),
            along=tuple(float(place) for place in long.get("along", ())),
            curves={name: tuple(float(value) for value in found) for name, found in curves.items() if found},
            sources=(sources.add(path, command), sources.add(maps, command)),
        )


def _arrays(path: Path, option: str) -> list[Maps]:
    again = f"write it again with `{VERB}`"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name].astype(np.float64) for name in MAPS]
    except FileNotFoundError as error:
        raise UserError(f"{option} {path}: no such file; {again}.") from error
    except KeyError as error:
        raise UserError(f"{option} {path}: lacks {error.args[0]}; {again}.") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        raise UserError(f"{option} {path}: is damaged; {again}.") from error


def _heads_mean(array: Maps) -> Maps:
    """(layers, heads, T, T) to (layers, T, T)."""
    if array.ndim != 4 or array.shape[-1] != array.shape[-2]:
        raise ValueError(f"a map has the shape {array.shape}")
    return np.asarray(array.mean(axis=1))


def _figures(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of the table, in words."""
    found = []
    for position, (name, each) in enumerate(data["sink_metric"]["places"].items()):
        place = "outlet" if name == "outlet" else f"position {position}"
        found.append((f"heads with a sink at {place}", f"{each['heads']:.1%}"))
        if position == 0:
            found.append((f"mean attention to {place}", f"{each['attention']:.3f}"))
    entropy = data.get("entropy") or {}
    if "mean" in entropy:
        even = f" (evenly: {entropy['even']:.3g})" if "even" in entropy else ""
        found.append(("entropy of the attention, nats", f"{entropy['mean']:.3g}{even}"))
    massive = data.get("massive_activations") or {}
    if massive.get("ratio"):
        layer = max(range(len(massive["ratio"])), key=massive["ratio"].__getitem__)
        where = f"layer {layer}, position {massive['position'][layer]}"
        found.append(("largest activation, times the median", f"{massive['ratio'][layer]:,.0f} ({where})"))
    for name, norm in (data.get("norms") or {}).items():
        ratios = [ratio for ratio in norm["ratio"] if ratio is not None]
        if ratios:
            what = {"hidden": "hidden state", "keys": "key", "values": "value"}.get(name, name)
            found.append(
                (f"norm of the {what} at position 0 / others, by layer", f"{min(ratios):.2g} to {max(ratios):.3g}")
            )
    return found
