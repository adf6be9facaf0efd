"""Makes shapes.json from a result folder: python recipes/statistics/shapes.py RESULTS

Of the NLLs with one sink, of their paired difference from four sinks and from recomputing, the quantiles that
simulate.py makes series from, and on stdout how they remember.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from sinktrain.evaluation.results import read_results

TAIL = np.geomspace(1e-4, 0.02, 20)
AT = np.concatenate(([0.0], TAIL, np.linspace(0.03, 0.97, 48), 1 - TAIL[::-1], [1.0]))


def main(path: Path) -> int:
    """Writes shapes.json beside this file."""
    results = read_results(path)
    full = results.full_cache()
    one, four = results.nll["1+255"], results.nll["4+252"]
    sampled = full & np.isfinite(results.nll["recompute"])
    series = {
        "nll": one[full],
        "difference": (one - four)[full],
        "difference from recompute": (one - results.nll["recompute"])[sampled],
    }
    for name, values in series.items():
        normal = ndtri((np.argsort(np.argsort(values)) + 0.5) / len(values))
        phi = [round(float(np.mean(normal[:-lag] * normal[lag:])), 3) for lag in (1, 2, 3, 10)]
        centred = (values - values.mean()) / values.std()
        print(
            f"{name}: {len(values)} tokens, mean {values.mean():.5f}, deviation {values.std():.5f}, skewness "
            f"{np.mean(centred**3):.1f}, kurtosis {np.mean(centred**4):.0f}, correlation of ranks at 1, 2, 3, 10: {phi}"
        )
    stored = {name: [float(f"{value:.4g}") for value in np.quantile(values, AT)] for name, values in series.items()}
    record = {"from": results.record["command"], "at": [float(f"{value:.6g}") for value in AT], "quantiles": stored}
    Path(__file__).with_name("shapes.json").write_text(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
