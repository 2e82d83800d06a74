"""The normalised mean: rows contribute their directions, not their lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgen.aggregation.base import GramRule, Weighing
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "normalised_mean")
@dataclass(frozen=True, kw_only=True)
class NormalisedMean(GramRule):
    """Mean of the rows' directions, as long as the median row. Weights are ignored.

    aggregate = median_j |g_j| * mean_i g_i / |g_i|, where a row of zeros has no direction and counts as zeros;
    n >= 2 f + 1

    >>> NormalisedMean()([[3.0, 0.0], [0.0, 2.0], [0.0, 1e9]], f=1).aggregate.tolist()
    [1.0, 2.0]
    """

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        lengths = np.sqrt(np.diagonal(gram))
        return Weighing(np.median(lengths) * inverse(lengths) / len(gram))


def inverse(lengths: Array) -> Array:
    """1 / lengths[n], 0 for 0."""
    return np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
