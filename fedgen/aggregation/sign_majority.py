"""Sign majority: every coordinate moves the way most rows want it to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import BaseRule
from fedgen.contracts import Aggregation, Columns, Context, Rows
from fedgen.registry import register

Step = Annotated[float | None, Field(gt=0, description="move of a coordinate; that of the median row if left out")]


@register("rule", "sign_majority")
@dataclass(frozen=True, kw_only=True)
class SignMajority(BaseRule):
    """Moves every coordinate by the same amount, in the direction that most rows give it. Weights are ignored.

    aggregate_j = s * sign(sum_i sign(g_ij)), s = `step`, or median_i |g_i| / sqrt(d), with which the aggregate is as
    long as the median row;  f < n / 2

    >>> SignMajority(step=0.5)([[1.0, -3.0], [2.0, 9.0], [-1e9, -1.0]], f=1).aggregate.tolist()
    [0.5, -0.5]

    Source: J. Bernstein et al., signSGD with majority vote, arXiv 1810.05291 (2019), algorithm 1, whose step is a
    number.
    """

    step: Step = None

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        step = self.step if self.step is not None else float(rows.norms().quantile(0.5)) / max(rows.size, 1) ** 0.5
        return Aggregation(rows.map(Majority(step)).collect()[0])


@dataclass(frozen=True)
class Majority:
    """slab[n, c] -> [1, c]."""

    step: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return slab.sign().sum(0, keepdim=True).sign() * self.step
