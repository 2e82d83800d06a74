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

    s_i = <u, g_i - mean_j g_j>^2, u the leading right singular vector of the centred rows.  ceil(share * f) rows with
    the largest s_i are left out, in `steps` parts, u and the mean taken anew of those that are left;  aggregate = mean
    of the rest;  n >= 2 f + 1

    >>> DivideAndConquer()([[1.0], [2.0], [3.0], [1e9]], f=1).aggregate.tolist()
    [2.0]

    Source: V. Shejwalkar, A. Houmansadr, NDSS 2021, algorithm 2.  They repeat it on random columns, because a singular
    vector of all of them costs too much; from the Gram matrix it costs nothing, so all columns decide.  They leave all
    rows out at once (steps = 1), and Byzantine rows that pull in different directions hide behind the farthest of them.
    """

    share: Annotated[float, Field(ge=0, lt=2, description="rows left out, in multiples of f (the paper's c)")] = 1.0
    steps: Annotated[
        int | None, Field(ge=1, description="parts that are left out in turn; single rows if not given")
    ] = None

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        kept = np.arange(len(gram))
        excess = ceil(self.share * context.f)
        for part in np.array_split(np.arange(excess), min(self.steps or excess, excess) or 1):
            kept = kept[_nearest(gram[np.ix_(kept, kept)])[: len(kept) - len(part)]]
        return Weighing(equal_shares(kept, len(gram)))


def _nearest(gram: Array) -> Array:
    """Places of the rows, from the one that is least far along the leading direction."""
    inner = centred(gram, np.full(len(gram), 1 / len(gram)))
    _, vectors = np.linalg.eigh(inner)
    return np.lexsort((np.diagonal(inner), np.abs(inner @ vectors[:, -1])))
