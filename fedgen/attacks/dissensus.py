"""Dissensus: Byzantine peers cancel the messages of honest neighbours, so that peers never reach consensus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Replace
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "dissensus")
@dataclass(frozen=True, kw_only=True)
class Dissensus(BaseAttack):
    """Sends what cancels the honest updates of a mean: with epsilon 1 it stands still, above that it runs backwards.

    g_i <- -epsilon * sum of w_j g_j over honest j / sum of w_k over Byzantine k, for Byzantine i, with w = weights[n]

    In gossip with byzantine.per_neighbour, where rows are differences from the receiver's own model, this keeps every
    peer away from its neighbours, each by another model.

    >>> Dissensus()([[1.0, 3.0], [9.0, 9.0], [3.0, 5.0]], byzantine=[1])
    tensor([[ 1.,  3.],
            [-4., -8.],
            [ 3.,  5.]])

    Source: L. He, S. P. Karimireddy, M. Jaggi, Byzantine-robust decentralized learning via ClippedGossip, arXiv
    2202.01545 (2022), section on the dissensus attack.
    """

    epsilon: Annotated[float, Field(gt=0, description="1 cancels the honest updates, more reverses them")] = 1.0
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        shares = view.weights.where(~view.byzantine, 0) / view.weights[view.byzantine].sum()
        return rows.map(Replace.of(view, Against(self.epsilon * shares))), view.weights, view.memory


@dataclass(frozen=True)
class Against:
    """slab[n, c] -> [1, c]: minus the rows' sum with shares[n], added one by one: no column's bits depend on others."""

    shares: Tensor

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        total = torch.zeros_like(slab[0])
        for place in self.shares.nonzero().flatten().tolist():
            total.sub_(slab[place], alpha=float(self.shares[place]))
        return total[None]
