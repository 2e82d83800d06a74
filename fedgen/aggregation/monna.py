"""MoNNA: the mean of the models nearest to the receiver's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgen.aggregation.base import GramRule, Weighing
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "monna")
@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(GramRule):
    """Mean of the receiver's own model and the n - f rows nearest to it: made for gossip. Weights are ignored.

    aggregate = (sum of the n - f rows with the least |g_i|) / (n - f + 1), rows being differences from the receiver's
    own model, which is the zero row among them;  n >= 2 f + 1.  In a star the receiver's model is the global one; in
    gossip gossip.keep = 0 makes the merged model this mean, where another share counts the own model once more.

    >>> NearestNeighbours()([[1.0], [-2.0], [4.0], [1e9]], f=1).aggregate.tolist()
    [0.75]

    Source: S. Farhadkhani et al., Robust Collaborative Learning with Linear Gradient Overhead, arXiv 2209.10931 (2023),
    algorithm 1.
    """

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        kept = len(gram) - context.f
        shares = np.zeros(len(gram))
        shares[np.argsort(np.diagonal(gram), kind="stable")[:kept]] = 1 / (kept + 1)
        return Weighing(shares)
