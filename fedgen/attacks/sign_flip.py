"""Multiples of the honest update: sign flip, and scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort, Scaled
from fedgen.contracts import Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "sign_flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip(BaseAttack):
    """Sends minus `scale` times the honest update.

    g_i <- -scale * g_i for Byzantine i

    >>> SignFlip(scale=10.0)([[1.0, 2.0], [3.0, 4.0]], byzantine=[1])
    tensor([[  1.,   2.],
            [-30., -40.]])

    Source: L. Li et al., RSA, arXiv 1811.03761 (2019), section 5; scale 10 is the "x -10" attack of the field.
    """

    scale: Annotated[float, Field(gt=0, description="factor of the flipped update")] = 1.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        return rows.map(Distort.of(view, Scaled(-self.scale))), view.weights, view.memory


@register("attack", "scaling")
@dataclass(frozen=True, kw_only=True)
class Scaling(BaseAttack):
    """Sends `scale` times the honest update: right in direction, far too long.

    g_i <- scale * g_i for Byzantine i

    >>> Scaling()([[1.0], [2.0]], byzantine=[0])
    tensor([[30.],
            [ 2.]])

    Source: E. Bagdasaryan et al., arXiv 1807.00459 (2020), boosting; the factor 30 is the field's habit.
    """

    scale: Annotated[float, Field(gt=0, description="factor of the update")] = 30.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        return rows.map(Distort.of(view, Scaled(self.scale))), view.weights, view.memory
