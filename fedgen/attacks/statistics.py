"""False statistics: honest parameters with running means and variances that were never measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register
from fedgen.rows import inside


@register("attack", "statistics")
@dataclass(frozen=True, kw_only=True)
class FalseStatistics(BaseAttack):
    """Sends honest parameters, and a multiple of the statistics that the module measures, as BatchNorm does.

    s_i <- scale * s_i, s the columns of the statistics: their change in a star, their values in gossip

    Rules decide by parameters, so they do not see this attack; admission limits statistics separately.
    A model without statistics is not attacked.
    """

    scale: Annotated[float, Field(allow_inf_nan=False, description="factor of the statistics that are sent")] = -100.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        lie = ScaledPart(self.scale, view.context.layout.measured)
        return rows.map(Distort(view.byzantine, lie)), view.weights, view.memory


@dataclass(frozen=True)
class ScaledPart:
    """slab[k, c] -> the slab with some columns of the row multiplied."""

    factor: float
    part: Columns

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        scaled = slab.clone()
        scaled[:, inside(self.part, columns)] *= self.factor
        return scaled
