"""The same update whatever was trained: a constant, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "constant")
@dataclass(frozen=True, kw_only=True)
class Constant(BaseAttack):
    """Sends one number in every coordinate.

    g_i <- (value, ..., value) for Byzantine i

    >>> Constant(value=5.0)([[1.0, 2.0], [3.0, 4.0]], byzantine=[0])
    tensor([[5., 5.],
            [3., 4.]])

    Source: L. Li et al., RSA, arXiv 1811.03761 (2019), section 5 ("same-value attack").
    """

    value: Annotated[float, Field(allow_inf_nan=False, description="the number")] = 1.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        return rows.map(Distort.of(view, Fill(self.value))), view.weights, view.memory


@register("attack", "zeros")
@dataclass(frozen=True, kw_only=True)
class Zeros(BaseAttack):
    """Sends an update of zeros, which slows the mean down and drags a rule towards standing still.

    g_i <- 0 for Byzantine i

    >>> Zeros()([[1.0, 2.0], [3.0, 4.0]], byzantine=[0])
    tensor([[0., 0.],
            [3., 4.]])

    Source: L. Li et al., RSA, arXiv 1811.03761 (2019), section 5, with the value 0.
    """

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        return rows.map(Distort.of(view, Fill(0.0))), view.weights, view.memory


@dataclass(frozen=True)
class Fill:
    """slab -> a slab of one number."""

    value: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return torch.full_like(slab, self.value)
