"""Minimum-diameter averaging: the rows that are closest together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgen.aggregation.base import GramRule, Weighing, equal_shares, squared_distances
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "mda")
@dataclass(frozen=True, kw_only=True)
class MinimumDiameter(GramRule):
    """Mean of the n - f rows whose largest distance is least. Weights are ignored.

    aggregate = mean of g_i, i in argmin_{|S| = n - f} max_{i, j in S} |g_i - g_j|;  n >= 2 f + 1

    Exact for any n: rows farther apart than t are joined by an edge, and S has diameter t if f rows touch every edge;
    the least such t is found by bisection, the f rows by branching.  Of the rows that may stay or go, those farthest
    from the others go.

    >>> MinimumDiameter()([[1.0], [2.0], [3.0], [1e9]], f=1).aggregate.tolist()
    [2.0]

    Source: E. Mhamdi et al., arXiv 1905.03853 (2020), section 3; P. Rousseeuw, 1985.
    """

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        distances = squared_distances(gram)
        return Weighing(equal_shares(closest(distances, context.f), len(gram)))


def closest(distances: Array, f: int) -> Array:
    """The n - f row numbers with the least diameter, from squared distances float64[n, n]."""
    limits = np.unique(distances)
    low = 0
    high = len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        feasible = _cover(distances > limits[middle], f, distances) is not None
        low, high = (low, middle) if feasible else (middle + 1, high)
    gone = _cover(distances > limits[low], f, distances)
    assert gone is not None, "nothing is farther apart than the largest distance"
    left = np.setdiff1d(np.arange(len(distances)), gone)
    while len(left) > len(distances) - f:
        left = np.delete(left, distances[np.ix_(left, left)].sum(1).argmax())
    return left


def _cover(edges: Array, budget: int, distances: Array) -> list[int] | None:
    """At most `budget` rows that touch every edge of bool[n, n], None where there are none; of two, the farther."""
    degrees = edges.sum(1)
    busiest = int(np.lexsort((distances.sum(1), degrees))[-1])
    if degrees[busiest] == 0:
        return []
    if degrees.sum() > 2 * budget * degrees[busiest]:
        return None
    for taken in ([busiest], np.flatnonzero(edges[busiest]).tolist()):
        if len(taken) <= budget:
            rest = edges.copy()
            rest[taken, :] = rest[:, taken] = False
            others = _cover(rest, budget - len(taken), distances)
            if others is not None:
                return taken + others
    return None
