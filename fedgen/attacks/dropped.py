"""Dropped coordinates: what a network that loses packets, or a lazy client, leaves of an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort, Draws
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "dropped")
@dataclass(frozen=True, kw_only=True)
class Dropped(BaseAttack):
    """Sends the honest update with a drawn share of its coordinates set to 0.

    g_ij <- 0 where u_ij < share, u_ij uniform in (0, 1), drawn by client i, round and column j

    >>> sent = Dropped(share=0.25)([[1.0] * 1000, [1.0] * 1000], byzantine=[1])
    >>> [round(float(part), 1) for part in (sent == 0).double().mean(1)]
    [0.0, 0.2]

    Source: H. Almasi et al., Flag Aggregator, arXiv 2302.05865 (2024), section 3 (10 % of the gradients lost).  Their
    code discards what it drops; here it is dropped, coordinate by coordinate.
    """

    share: Annotated[float, Field(gt=0, le=1, description="share of the coordinates set to 0")] = 0.1

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        lie = Drop(Draws.of(view, "dropped"), self.share)
        return rows.map(Distort.of(view, lie)), view.weights, view.memory


@dataclass(frozen=True)
class Drop:
    """slab[k, c] -> the slab with a share of it set to 0."""

    draws: Draws
    share: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return slab.masked_fill((self.draws.uniform(columns) < self.share).to(slab.device), 0.0)
