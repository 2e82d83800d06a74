"""Inner-product manipulation: all Byzantine clients push against the honest mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Replace
from fedgen.attacks.gram import Along
from fedgen.attacks.search import strongest
from fedgen.contracts import Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "ipm")
@dataclass(frozen=True, kw_only=True)
class InnerProductManipulation(BaseAttack):
    """Sends minus `epsilon` times the mean of the honest updates; a small epsilon hides, a large one destroys.

    g_i <- -epsilon * mean of g_j over honest j, for Byzantine i.  Without honest rows nothing is changed.

    With `optimize`, the epsilon in 0.1 .. 100 that moves the running rule farthest from the honest mean (16 points
    evenly spaced by ratio, then 8 golden sections, on inner products where the rule needs no more).
    A large epsilon is what others call FOE, fall of empires.

    >>> InnerProductManipulation(epsilon=0.5)([[1.0, 3.0], [9.0, 9.0], [3.0, 5.0]], byzantine=[1])
    tensor([[ 1.,  3.],
            [-1., -2.],
            [ 3.,  5.]])

    Source: C. Xie, O. Koyejo, I. Gupta, Fall of Empires, arXiv 1903.03936 (2019), section 4; the line search is that of
    Y. Allouah et al., arXiv 2302.01772 (2023), experiments.
    """

    epsilon: Annotated[float, Field(gt=0, description="factor of the honest mean")] = 2.0
    optimize: Annotated[bool, Field(description="the epsilon that moves the running rule farthest, instead")] = False
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        honest = ~view.byzantine
        if not honest.any():
            return rows, view.weights, view.memory
        epsilon = strongest(rows, view, lambda factor: (-factor, 0.0)) if self.optimize else self.epsilon
        return rows.map(Replace.of(view, Along(honest, -epsilon, 0.0))), view.weights, view.memory
