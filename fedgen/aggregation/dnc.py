"""Divide and conquer: leave out the rows that lie farthest along the leading direction."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated

import numpy as np
from pydantic import Field

from fedgen.aggregation.base import GramRule, Weighing, centred, equal_shares
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "dnc")
@dataclass(frozen=True, kw_only=True)
class DivideAndConquer(GramRule):
    """Mean without the `share` * f rows farthest along the leading direction around the mean. Weights are ignored.

    s_i = <u, g_i - mean_j g_j>^2, u the leading right singular vector of the centred rows; aggregate = mean of the
    n - ceil(share * f) rows with the least s_i;  n >= 2 f + 1

    >>> DivideAndConquer()([[1.0], [2.0], [3.0], [1e9]], f=1).aggregate.tolist()
    [2.0]

    Source: V. Shejwalkar, A. Houmansadr, NDSS 2021, algorithm 2.  They repeat it on random columns, because a singular
    vector of all of them costs too much; from the Gram matrix it costs nothing, so all columns decide, once.
    """

    share: Annotated[float, Field(ge=0, lt=2, description="rows left out, in multiples of f (the paper's c)")] = 1.0

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        n = len(gram)
        inner = centred(gram, np.full(n, 1 / n))
        _, vectors = np.linalg.eigh(inner)
        score = np.abs(inner @ vectors[:, -1])
        order = np.lexsort((np.diagonal(inner), score))
        return Weighing(equal_shares(order[: n - ceil(self.share * context.f)], n))
