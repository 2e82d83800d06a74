"""The weighted mean: federated averaging's own rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgen.contracts import Aggregation, Context, Rows
from fedgen.registry import register
from fedgen.rows import Combine


@register("rule", "mean")
@dataclass(frozen=True, kw_only=True)
class Mean:
    """Weighted mean of the updates; withstands no liar.

    aggregate = sum_i w_i g_i / sum_i w_i, with w = weights[n], g = rows[n, d]

    >>> import torch
    >>> from fedgen.rows import LocalRows
    >>> from fedgen.parameters import Layout
    >>> context = Context(torch.zeros(2), Layout({"w": (2,)}), torch.arange(2), f=0)
    >>> Mean().aggregate(LocalRows(torch.tensor([[0.0, 0.0], [4.0, 8.0]])), torch.tensor([3.0, 1.0]), context).aggregate
    tensor([1., 2.])

    Source: H. B. McMahan et al., arXiv 1602.05629 (2017), algorithm 1.
    """

    linear: ClassVar[bool] = True

    def minimum(self, f: int) -> int:
        return 1

    def coefficients(self, gram: Tensor, weights: Tensor, context: Context) -> Tensor:
        """[n], whatever the Gram matrix is."""
        return weights.double() / weights.double().sum()

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        coefficients = weights.double() / weights.double().sum()
        return Aggregation(rows.map(Combine(coefficients[None])).collect()[0], coefficients)
