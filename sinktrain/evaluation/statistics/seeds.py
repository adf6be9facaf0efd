"""Over several models that differ in their seed only, on one text: seeds and text are crossed, not nested.

What seed s has at token t is mean + a_s + b_t + e_st: every seed reads the same tokens. So the squared error of the
mean is that between seeds plus that between stretches of text, less what both have counted (Cameron, Gelbach and Miller
2011, equation 2.8). A bootstrap over three seeds covers too seldom, since three numbers can be drawn in few ways only;
the bounds are those of a t with the degrees of freedom of Satterthwaite (1946) instead.
"""

from __future__ import annotations

import numpy as np

from sinktrain.evaluation.statistics.interval import Interval
from sinktrain.evaluation.statistics.mean import RESAMPLES, choose_units, estimate
from sinktrain.evaluation.statistics.pivots import Student
from sinktrain.evaluation.statistics.units import WIDER, Numbers, Series, blocks, whole_documents


def estimate_over_seeds(
    series: Series, documents: Numbers | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of `series` (S, n) over seeds and tokens; for one seed, `estimate`.

    Args:
        series: one number a seed and token, the tokens the same for all seeds and in the order of the text.
        documents: (n,) the number of each token's document.
        resamples: of the bootstrap, for one seed.
        seed: of the bootstrap, for one seed.

    Raises:
        ValueError: the series is empty or holds a number that is not finite.
    """
    series = np.asarray(series, dtype=np.float64)
    count = len(series)
    averaged = series.mean(axis=0)
    if count == 1 or averaged.size == 0 or not np.isfinite(series).all():
        return estimate(averaged, documents, resamples=resamples, seed=seed)
    units, length, resampled, effective = choose_units(averaged, documents, None)
    text = units.standard_error() ** 2
    seeds = float(series.mean(axis=1).var(ddof=1)) / count
    own = [  # what a seed does in a stretch of text that the others do not: it is in `text` and in `seeds`
        whole_documents(rest, documents)
        if resampled == "documents" and documents is not None
        else blocks(rest, length, documents, units.seen)
        for rest in series - averaged
    ]
    both = sum(each.standard_error() ** 2 for each in own) / (count * (count - 1))
    variance = max(seeds + text - both, seeds, text)
    # Satterthwaite: each part as uncertain as the degrees of freedom that it was measured with.
    spread = seeds**2 / (count - 1) + text**2 / max(1.0, units.drawn - 1)
    df = max(count - 1.0, min(1e6, variance**2 / spread)) if spread > 0 else count - 1.0
    return Interval(
        mean=float(series.mean()),
        standard_error=float(np.sqrt(variance)),
        pivot=Student(df, WIDER),
        tokens=series.shape[1],
        block_length=length,
        resampled=resampled,
        units=units.drawn,
        documents=1 if documents is None else len(np.unique(documents)),
        effective_documents=effective,
        seeds=count,
        between_seeds=max(0.0, seeds - both),
    )
