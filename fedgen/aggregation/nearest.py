"""Means of the values nearest to a centre: MeaMed around the median, Phocas around the trimmed mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgen.aggregation.base import BaseRule
from fedgen.aggregation.sorting import halfway, mean_of, middle, nearest_mean, reduce_sorted
from fedgen.contracts import Aggregation, Columns, Context, Rows
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "meamed")
@dataclass(frozen=True, kw_only=True)
class MeaMed(BaseRule):
    """Mean of the n - f values of every coordinate that are nearest to its median. Weights are ignored.

    aggregate_j = mean of the n - f values g_ij with the least |g_ij - median_i g_ij|;  n >= 2 f + 1

    >>> MeaMed()([[1.0], [2.0], [3.0], [4.0], [1e9]], f=1).aggregate.tolist()
    [2.5]

    Source: C. Xie, O. Koyejo, I. Gupta, arXiv 1802.10116 (2018), definition 7 ("mean around median").
    """

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(rows.map(AroundMedian(context.f)).collect()[0])


@register("rule", "phocas")
@dataclass(frozen=True, kw_only=True)
class Phocas(BaseRule):
    """Mean of the n - f values of every coordinate nearest to its trimmed mean. Weights are ignored.

    aggregate_j = mean of the n - f values g_ij with the least |g_ij - trimmed mean_i g_ij|;  n >= 2 f + 1

    >>> Phocas()([[1.0], [2.0], [3.0], [4.0], [1e9]], f=1).aggregate.tolist()
    [2.5]

    Source: C. Xie, O. Koyejo, I. Gupta, arXiv 1805.09682 (2018), definition 3.
    """

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(rows.map(AroundTrimmedMean(context.f)).collect()[0])


@dataclass(frozen=True)
class AroundMedian:
    """slab[n, c] -> [1, c]: the mean of all but the `dropped` values farthest from the median."""

    dropped: int

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        def reduce(lines: Sequence[Array]) -> Array:
            inner = middle(len(lines))
            return nearest_mean(lines, halfway(lines[inner.start : inner.stop]), len(lines) - self.dropped)

        return reduce_sorted(slab, range(len(slab)), reduce)


@dataclass(frozen=True)
class AroundTrimmedMean:
    """slab[n, c] -> [1, c]: the mean of all but the f values farthest from the mean without f at either end."""

    f: int

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        def reduce(lines: Sequence[Array]) -> Array:
            centre = mean_of(lines[self.f : len(lines) - self.f])
            return nearest_mean(lines, centre, len(lines) - self.f)

        return reduce_sorted(slab, range(len(slab)), reduce)
