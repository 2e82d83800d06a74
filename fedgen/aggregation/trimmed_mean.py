"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgen.aggregation.base import BaseRule
from fedgen.aggregation.sorting import mean_of, reduce_sorted
from fedgen.contracts import Aggregation, Columns, Context, Rows
from fedgen.registry import register


@register("rule", "trimmed_mean")
@dataclass(frozen=True, kw_only=True)
class TrimmedMean(BaseRule):
    """Mean of every coordinate without its f smallest and f largest values. Weights are ignored.

    aggregate_j = mean of g_(f+1)j .. g_(n-f)j, with g_(i)j the sorted rows[n, d] of column j; 2 f < n

    >>> TrimmedMean()([[1.0], [2.0], [4.0], [1e9]], f=1).aggregate.tolist()
    [3.0]

    Source: D. Yin et al., arXiv 1803.01498 (2018), definition 2, with beta = f / n.
    """

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(rows.map(Trim(context.f)).collect()[0])


@dataclass(frozen=True)
class Trim:
    """slab[n, c] -> [1, c], the mean of what is left between the f smallest and the f largest."""

    f: int

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return reduce_sorted(slab, range(self.f, len(slab) - self.f), mean_of)
