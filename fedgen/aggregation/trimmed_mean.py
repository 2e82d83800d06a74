"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgen.contracts import Aggregation, Columns, Context, Rows
from fedgen.registry import register


@register("rule", "trimmed_mean")
@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Mean of every coordinate without its f smallest and f largest values. Weights are ignored.

    aggregate_j = mean of g_(f+1)j .. g_(n-f)j, with g_(i)j the sorted rows[n, d] of column j; 2 f < n

    >>> import torch
    >>> from fedgen.rows import LocalRows
    >>> from fedgen.parameters import Layout
    >>> context = Context(torch.zeros(1), Layout({"w": (1,)}), torch.arange(4), f=1)
    >>> rows = LocalRows(torch.tensor([[1.0], [2.0], [4.0], [1e9]]))
    >>> TrimmedMean().aggregate(rows, torch.ones(4), context).aggregate
    tensor([3.])

    Source: D. Yin et al., arXiv 1803.01498 (2018), definition 2, with beta = f / n.
    """

    linear: ClassVar[bool] = False

    def minimum(self, f: int) -> int:
        return 2 * f + 1

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(rows.map(Trim(context.f)).collect()[0])


@dataclass(frozen=True)
class Trim:
    """slab[n, c] -> [1, c], the mean of what is left between the f smallest and the f largest."""

    f: int

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return slab.sort(dim=0).values[self.f : len(slab) - self.f].mean(0, keepdim=True)
