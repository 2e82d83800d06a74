"""Krum and Multi-Krum: the rows with the nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedgen.aggregation.base import GramRule, Weighing, equal_shares, squared_distances
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "krum")
@dataclass(frozen=True, kw_only=True)
class Krum(GramRule):
    """The one row whose n - f - 2 nearest neighbours are nearest. Weights are ignored.

    score_i = sum of the n - f - 2 smallest |g_i - g_j|^2, j != i;  aggregate = g_i with the least score;  n >= 2 f + 3

    >>> Krum()([[0.0], [1.0], [2.0], [3.0], [1e9]], f=1).aggregate.tolist()
    [2.0]

    Source: P. Blanchard et al., arXiv 1703.02757 (2017), section 4.  Equal scores, as two rows that are each other's
    nearest have them, are told apart by one neighbour more, then by all rows: not by the order of the rows.
    """

    def minimum(self, f: int) -> int:
        return 2 * f + 3

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        best = by_score(squared_distances(gram), context.f)
        return Weighing(equal_shares(best[:1], len(gram)))


@register("rule", "multi_krum")
@dataclass(frozen=True, kw_only=True)
class MultiKrum(GramRule):
    """Mean of the `select` rows with the least Krum scores. Weights are ignored.

    aggregate = mean of g_i over the `select` least score_i (see Krum);  n >= 2 f + 3

    >>> MultiKrum()([[0.0], [1.0], [2.0], [3.0], [1e9]], f=1).aggregate.tolist()
    [1.5]

    Source: P. Blanchard et al., arXiv 1703.02757 (2017), section 5.1.
    """

    select: Annotated[int | None, Field(ge=1, description="rows that are averaged; n - f - 2 where not given")] = None

    def minimum(self, f: int) -> int:
        return max(2 * f + 3, (self.select or 0) + f + 2)

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        best = by_score(squared_distances(gram), context.f)
        return Weighing(equal_shares(best[: self.select or len(gram) - context.f - 2], len(gram)))


def by_score(distances: Array, f: int) -> Array:
    """Row numbers by rising Krum score, from squared distances float64[n, n]."""
    neighbours = max(1, len(distances) - f - 2)
    others = np.sort(distances, axis=1)[:, 1:]
    scores = [others[:, :count].sum(1) for count in (neighbours, neighbours + 1, len(distances))]
    order: Array = np.lexsort(scores[::-1])
    return order
