"""CGE: leave out the longest rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgen.aggregation.base import GramRule, Weighing, equal_shares
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "cge")
@dataclass(frozen=True, kw_only=True)
class ComparativeElimination(GramRule):
    """Mean of the n - f shortest rows: comparative gradient elimination. Weights are ignored.

    aggregate = mean of the n - f rows with the least |g_i|;  n >= 2 f + 1

    >>> ComparativeElimination()([[1.0], [-2.0], [3.0], [1e9]], f=1).aggregate.round(decimals=3).tolist()
    [0.667]

    Source: N. Gupta, S. Liu, N. Vaidya, arXiv 2008.04699 (2021), section 3; the mean, where they have the sum.
    """

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        order = np.argsort(np.diagonal(gram), kind="stable")
        return Weighing(equal_shares(order[: len(gram) - context.f], len(gram)))
