"""Garbage: numbers and weights that no rule should ever see."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort
from fedgen.attacks.fixed import Fill
from fedgen.contracts import Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register

NUMBERS = {"nan": nan, "inf": inf, "huge": 1e30}
WEIGHTS = {"weight_nan": nan, "weight_inf": inf, "weight_huge": 1e12, "weight_zero": 0.0, "weight_negative": -1.0}


@register("attack", "garbage")
@dataclass(frozen=True, kw_only=True)
class Garbage(BaseAttack):
    """Sends NaN, infinity, huge numbers or an absurd weight, which admission turns away, and its client with it.

    g_ij <- NaN, infinity or 1e30 for all j; or weight_i <- NaN, infinity, 1e12, 0 or -1, for Byzantine i

    Integers carry neither NaN nor infinity: there it is 0, or the largest number of the type.

    >>> Garbage(kind="inf")([[1.0], [2.0]], byzantine=[1])
    tensor([[1.],
            [inf]])
    """

    kind: Annotated[
        Literal["nan", "inf", "huge", "weight_nan", "weight_inf", "weight_huge", "weight_zero", "weight_negative"],
        Field(description="what is sent"),
    ] = "nan"

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        if self.kind in WEIGHTS:
            return rows, torch.where(view.byzantine, WEIGHTS[self.kind], view.weights), view.memory
        return rows.map(Distort(view.byzantine, Fill(NUMBERS[self.kind]))), view.weights, view.memory
