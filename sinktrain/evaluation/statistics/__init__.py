"""How sure a mean of NLLs, or of their differences, is: over blocks of a text, over documents, over seeds."""

from sinktrain.evaluation.statistics.interval import Interval
from sinktrain.evaluation.statistics.mean import RESAMPLES, estimate
from sinktrain.evaluation.statistics.multiplicity import holm
from sinktrain.evaluation.statistics.seeds import estimate_over_seeds

__all__ = ["RESAMPLES", "Interval", "estimate", "estimate_over_seeds", "holm"]
