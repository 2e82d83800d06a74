"""Sign flip: train honestly, send the opposite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Replace
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "sign_flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip(BaseAttack):
    """Sends minus `scale` times the honest update.

    g_i <- -scale * g_i for Byzantine i

    Source: L. Li et al., RSA, arXiv 1811.03761 (2019), section 5; scale 10 is the "x -10" attack of the field.
    """

    scale: Annotated[float, Field(gt=0, description="factor of the flipped update")] = 1.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        return rows.map(Replace(view.byzantine, Scaled(-self.scale))), view.weights, view.memory


@dataclass(frozen=True)
class Scaled:
    """slab -> factor * slab."""

    factor: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return self.factor * slab
