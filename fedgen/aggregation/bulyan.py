"""Bulyan: Krum again and again, then the values nearest to the median."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgen.aggregation.base import BaseRule, finite_gram, squared_distances
from fedgen.aggregation.krum import by_score
from fedgen.aggregation.nearest import AroundMedian
from fedgen.contracts import Aggregation, Context, Diagnostics, Rows
from fedgen.parameters import Array
from fedgen.registry import register
from fedgen.rows import Select


@register("rule", "bulyan")
@dataclass(frozen=True, kw_only=True)
class Bulyan(BaseRule):
    """Chooses n - 2 f rows by repeated Krum, then averages in every coordinate the n - 4 f nearest to their median.

    Krum chooses among the rows that are left, n - 2 f times; aggregate_j = mean of the n - 4 f chosen g_ij nearest to
    their median.  Weights are ignored;  n >= 4 f + 3

    >>> Bulyan()([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [1e9]], f=1).aggregate.tolist()
    [3.0]

    Source: E. Mhamdi, R. Guerraoui, S. Rouault, arXiv 1802.07927 (2018), section 4.
    """

    def minimum(self, f: int) -> int:
        return 4 * f + 3

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        mask = torch.from_numpy(chosen(squared_distances(finite_gram(rows)), context.f))
        return Aggregation(
            rows.map(Select(mask)).map(AroundMedian(2 * context.f)).collect()[0],
            diagnostics=Diagnostics(by_row={"chosen": mask}),
        )


def chosen(distances: Array, f: int) -> Array:
    """bool[n]: the n - 2 f rows that Krum takes, one after another."""
    left = np.arange(len(distances))
    mask = np.zeros(len(distances), bool)
    for _ in range(len(distances) - 2 * f):
        best = by_score(distances[np.ix_(left, left)], f)[0]
        mask[left[best]] = True
        left = np.delete(left, best)
    return mask
