"""What `sinktrain diagnose` says on the terminal."""

from __future__ import annotations

from statistics import median
from typing import Any


def table(record: dict[str, Any]) -> list[str]:
    """The lines, from a record as diagnosis.json holds it."""
    metric, activations = record["sink_metric"], record["massive_activations"]
    above = f"heads above {metric['threshold']} (Sink_k)"
    lines = [f"{'position':>10} {'attention':>10} {above:>26}"]
    for name, place in metric["places"].items():
        lines.append(f"{name:>10} {place['attention']:>10.1%} {place['heads']:>26.1%}")
    strongest = ", ".join(f"{layer}.{head} ({alpha:.2f})" for layer, head, alpha in metric["strongest"])
    lines.append(f"heads that give most to position 0, layer.head: {strongest}")
    top = max(range(len(activations["ratio"])), key=activations["ratio"].__getitem__)
    lines.append(
        f"largest activation: {activations['largest'][top]:,.1f}, {activations['ratio'][top]:,.0f} times the median, "
        f"in layer {top} at position {activations['position'][top]}, dimension {activations['dimension'][top]}"
        + (" (massive)" if activations["massive"][top] > 0.5 else " (not massive)")
    )
    norms = ", ".join(f"{name} {median(each['ratio']):.2f}" for name, each in record["norms"].items())
    lines.append(f"norms at position 0 beside those of other tokens, median of the layers: {norms}")
    entropy, long = record["entropy"], record["long"]
    lines.append(
        f"entropy of a head: {entropy['mean']:.2f} nats of {entropy['even']:.2f} for even attention; in the long text "
        f"{long['entropy']['mean']:.2f} of {long['entropy']['even']:.2f}"
    )
    return [*lines, *_along(long)]


def _along(long: dict[str, Any]) -> list[str]:
    """Attention on position 0 from queries at some places of the long text."""
    chosen = [n for n, begin in enumerate(long["along"]) if begin in (1, 16, 64, 256, 1024)]
    chosen = sorted({*chosen, len(long["along"]) - 1})
    lines = [f"{'attention on position 0 from':>30} " + " ".join(f"{long['along'][n]:>6}" for n in chosen)]
    for name, shares in (("full attention", long["dense"]), (f"cache {long['cache']}", long["stream"])):
        if shares is not None:
            lines.append(f"{name:>30} " + " ".join(f"{shares[n]:>6.1%}" for n in chosen))
    return lines
