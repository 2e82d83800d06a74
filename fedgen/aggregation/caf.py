"""CAF: rows lose weight along the direction in which all of them vary most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgen.aggregation.base import GramRule, Weighing, centred
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "caf")
@dataclass(frozen=True, kw_only=True)
class CovarianceFilter(GramRule):
    """Takes weight from the rows that lie farthest along the leading direction; keeps the mean that varies least.

    From w = 1, while sum w > n - 2 f: mu = sum_i p_i g_i with p = w / sum w; (lambda, u) the leading eigenpair of
    sum_i p_i (g_i - mu)(g_i - mu)^T; tau_i = <u, g_i - mu>^2; w_i <- w_i (1 - tau_i / max_j tau_j).  aggregate = the mu
    with the least lambda.  Client weights are ignored;  n >= 2 f + 1

    >>> CovarianceFilter()([[1.0], [2.0], [3.0], [1e3]], f=1).aggregate.round(decimals=2).tolist()
    [2.0]

    Source: Y. Allouah, R. Guerraoui, J. Stephan, arXiv 2505.01874 (2025), algorithm 2 (covariance-bound-agnostic
    filter).  The eigenpair is exact, from the Gram matrix; theirs is one step of power iteration from a random vector.
    """

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        n = len(gram)
        kept = np.ones(n)
        least = np.inf
        best = np.full(n, 1 / n)
        while kept.sum() > n - 2 * context.f:
            shares = kept / kept.sum()
            inner = centred(gram, shares)
            root = np.sqrt(shares)
            sizes, vectors = np.linalg.eigh(root[:, None] * inner * root)
            if sizes[-1] < least:
                least = sizes[-1]
                best = shares
            spread = np.square(inner @ (root * vectors[:, -1])) * (kept > 0)
            if sizes[-1] <= 0 or spread.max() == 0:
                break
            kept = kept * (1 - spread / spread.max())
        return Weighing(best)
