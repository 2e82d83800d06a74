"""The weighted mean: federated averaging's own rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedgen.aggregation.base import GramRule, Weighing
from fedgen.contracts import Aggregation, BatchedMerge, Context, Inboxes, Mixed, Rows
from fedgen.parameters import Array
from fedgen.registry import register
from fedgen.rows import Combine
from fedgen.topology.graph import by_row, with_data


@register("rule", "mean")
@dataclass(frozen=True, kw_only=True)
class Mean(GramRule):
    """Weighted mean of the updates; tolerates no Byzantine row.

    aggregate = sum_i w_i g_i / sum_i w_i, with w = weights[n], g = rows[n, d]

    >>> Mean()([[0.0, 0.0], [4.0, 8.0]], weights=[3, 1]).aggregate.tolist()
    [1.0, 2.0]

    Source: H. B. McMahan et al., arXiv 1602.05629 (2017), algorithm 1.
    """

    linear: ClassVar[bool] = True

    def minimum(self, f: int) -> int:
        return 1

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        return Weighing(weights / weights.sum())

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        coefficients = weights.double() / weights.double().sum()
        return Aggregation(rows.map(Combine(coefficients[None])).collect()[0], coefficients)

    def batched(self) -> BatchedMerge | None:
        return BatchedMerge(lambda models, layout: {}, self._merge)

    def _merge(self, inboxes: Inboxes) -> Mixed:
        """A sparse product: (1 - share) own + share * weights @ sent."""
        shares = inboxes.weights.data * by_row(inboxes.weights, inboxes.share)
        others = with_data(inboxes.weights, shares.astype(np.float32)) @ inboxes.sent.numpy()
        kept = torch.from_numpy(1 - inboxes.share).to(inboxes.own.dtype)
        return Mixed(torch.from_numpy(others).addcmul_(inboxes.own, kept[:, None]))
