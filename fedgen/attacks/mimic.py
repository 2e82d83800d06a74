"""Mimic: all Byzantine clients copy one honest client, so that its data weigh too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.statistics import decisive
from fedgen.attacks.base import BaseAttack, Replace
from fedgen.attacks.gram import Geometry
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register

VICTIM = "victim"
"""Memory: the number of the client that is copied."""


@register("attack", "mimic")
@dataclass(frozen=True, kw_only=True)
class Mimic(BaseAttack):
    """Sends a copy of one honest client's update, in all rounds the same client's where it takes part.

    g_i <- g_v for Byzantine i; v = argmax over honest j of |u . (g_j - mean)|, u the direction in which honest rows
    vary most: the leading eigenvector of their centred Gram matrix knows v without a pass over d

    `client` names v instead.  Where v is not in the round, or is Byzantine, a new v is chosen and copied from then on.
    Without honest rows nothing is changed.

    >>> Mimic()([[0.0, 1.0], [0.0, -1.0], [0.0, 5.0], [7.0, 7.0]], byzantine=[3])
    tensor([[ 0.,  1.],
            [ 0., -1.],
            [ 0.,  5.],
            [ 0.,  5.]])

    Source: S. P. Karimireddy, L. He, M. Jaggi, arXiv 2006.09365 (2022), "mimic attack".  There u is
    tracked over the rounds of a warm-up; here it is that of the round in which v is chosen.
    """

    client: Annotated[int | None, Field(ge=0, description="client to copy; chosen if left out")] = None
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        honest = ~view.byzantine
        if not honest.any():
            return rows, view.weights, view.memory
        place = self._wanted(view, honest)
        if place is None:
            place = farthest(decisive(rows, view.context.layout), honest)
        memory = {VICTIM: view.context.clients[place].reshape(1)}
        return rows.map(Replace.of(view, Copy(place))), view.weights, memory

    def _wanted(self, view: View, honest: Tensor) -> int | None:
        """The place of the client that is to be copied, where it is there."""
        known = view.memory.get(VICTIM)
        client = self.client if known is None or self.client is not None else int(known)
        if client is None:
            return None
        found = ((view.context.clients == client) & honest).nonzero().flatten()
        return int(found[0]) if len(found) else None


def farthest(rows: Rows, honest: Tensor) -> int:
    """The place of the honest row farthest from their mean along the direction in which they vary most."""
    distances = Geometry.of(rows, honest).distances()
    centred = distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()
    direction = torch.linalg.eigh(-centred / 2).eigenvectors[:, -1]
    return int(honest.nonzero().flatten()[direction.abs().argmax()])


@dataclass(frozen=True)
class Copy:
    """slab[n, c] -> [1, c]: one of its rows."""

    place: int

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return slab[self.place][None]
