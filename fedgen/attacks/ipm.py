"""Inner-product manipulation: all liars push against the honest mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Replace
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "ipm")
@dataclass(frozen=True, kw_only=True)
class InnerProductManipulation(BaseAttack):
    """Sends minus `epsilon` times the mean of the honest updates; a small epsilon hides, a large one destroys.

    g_i <- -epsilon * mean of g_j over honest j, for Byzantine i.  Where nobody is honest, rows stay as they are.

    Source: C. Xie, O. Koyejo, I. Gupta, Fall of Empires, arXiv 1903.03936 (2019), section 4.
    """

    epsilon: Annotated[float, Field(gt=0, description="factor of the honest mean")] = 2.0
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        if view.byzantine.all():
            return rows, view.weights, view.memory
        lie = Against(~view.byzantine, self.epsilon)
        return rows.map(Replace(view.byzantine, lie)), view.weights, view.memory


@dataclass(frozen=True)
class Against:
    """slab[n, c] -> [1, c]: minus epsilon times the mean of the honest rows."""

    honest: Tensor
    epsilon: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return -self.epsilon * slab[self.honest].mean(0, keepdim=True)
