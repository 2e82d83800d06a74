"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgen.aggregation.base import BaseRule
from fedgen.aggregation.sorting import halfway, middle, reduce_sorted
from fedgen.contracts import Aggregation, Columns, Context, Rows
from fedgen.registry import register


@register("rule", "median")
@dataclass(frozen=True, kw_only=True)
class Median(BaseRule):
    """Median of every coordinate; for an even number of rows, the mean of the two in the middle. Weights are ignored.

    aggregate_j = median_i g_ij, with g = rows[n, d]; f < n / 2

    >>> Median()([[1.0], [2.0], [4.0], [1e9]], f=1).aggregate.tolist()
    [3.0]

    Source: D. Yin et al., arXiv 1803.01498 (2018), definition 1.  We average the middle pair, where torch.median takes
    the lower one.
    """

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(rows.map(median).collect()[0])


def median(slab: Tensor, columns: Columns) -> Tensor:
    """slab[n, c] -> [1, c]."""
    return reduce_sorted(slab, middle(len(slab)), halfway)
