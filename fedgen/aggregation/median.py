"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedgen.contracts import Aggregation, Columns, Context, Rows
from fedgen.registry import register


@register("rule", "median")
@dataclass(frozen=True, kw_only=True)
class Median:
    """Median of every coordinate; for an even number of rows, the mean of the two in the middle. Weights are ignored.

    aggregate_j = median_i g_ij, with g = rows[n, d]; f < n / 2

    >>> import torch
    >>> from fedgen.rows import LocalRows
    >>> from fedgen.parameters import Layout
    >>> context = Context(torch.zeros(1), Layout({"w": (1,)}), torch.arange(4), f=1)
    >>> Median().aggregate(LocalRows(torch.tensor([[1.0], [2.0], [4.0], [1e9]])), torch.ones(4), context).aggregate
    tensor([3.])

    Source: D. Yin et al., arXiv 1803.01498 (2018), definition 1.  We average the middle pair, where torch.median takes
    the lower one.
    """

    linear: ClassVar[bool] = False

    def minimum(self, f: int) -> int:
        return 2 * f + 1

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(rows.map(middle).collect()[0])


def middle(slab: Tensor, columns: Columns) -> Tensor:
    """slab[n, c] -> [1, c]."""
    ordered, half = slab.sort(dim=0).values, (len(slab) - 1) // 2
    lower, upper = ordered[half], ordered[len(slab) - 1 - half]
    return torch.lerp(lower, upper, 0.5)[None]
