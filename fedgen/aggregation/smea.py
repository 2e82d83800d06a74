"""SMEA: the subset of rows that varies least along its leading direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import Annotated

import numpy as np
from pydantic import Field

from fedgen.aggregation.base import GramRule, Weighing, equal_shares, squared_distances
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register

BATCH = 1_024
"""Subsets whose eigenvalues are computed in one call."""


@register("rule", "smea")
@dataclass(frozen=True, kw_only=True)
class SmallestMaximumEigenvalue(GramRule):
    """Mean of the n - f rows whose covariance has the least leading eigenvalue. Weights are ignored.

    aggregate = mean of g_i, i in argmin_{|S| = n - f} lambda_max(sum_{i in S} (g_i - mean_S)(g_i - mean_S)^T);
    n >= 2 f + 1

    >>> SmallestMaximumEigenvalue()([[1.0], [2.0], [3.0], [9.0]], f=1).aggregate.tolist()
    [2.0]

    Source: Y. Allouah et al., arXiv 2302.01772 (2023), definition 5.  Exact while there are at most `subsets` of them;
    beyond, rows are left out one after another, each time the one whose absence helps most.
    """

    subsets: Annotated[int, Field(ge=1, description="most subsets that are all tried")] = 100_000

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        n = len(gram)
        distances = squared_distances(gram)
        if comb(n, context.f) <= self.subsets:
            return Weighing(equal_shares(_best(distances, combinations(range(n), n - context.f)), n))
        left = tuple(range(n))
        for _ in range(context.f):
            left = tuple(_best(distances, (left[:place] + left[place + 1 :] for place in range(len(left)))))
        return Weighing(equal_shares(np.array(left), n))


def _best(distances: Array, subsets: Iterator[tuple[int, ...]]) -> Array:
    """The subset with the least leading eigenvalue; of equal ones, the least spread in all directions together."""
    best = np.empty(0, int)
    least = (np.inf, np.inf)
    while batch := list(islice(subsets, BATCH)):
        index = np.array(batch)
        part = distances[index[:, :, None], index[:, None, :]]
        line = part.mean(2)
        inner = -0.5 * (part - line[:, :, None] - line[:, None, :] + line.mean(1)[:, None, None])
        sizes = np.linalg.eigvalsh(inner)[:, -1]
        spread = np.trace(inner, axis1=1, axis2=2)
        place = np.lexsort((spread, sizes))[0]
        if (sizes[place], spread[place]) < least:
            best = index[place]
            least = (sizes[place], spread[place])
    return best
